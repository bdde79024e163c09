// Products of floats by Intel's AMX, which multiplies bfloat16, of 8 bits of precision, some twenty times as fast as vectors multiply floats
// of 24, and adds up in float32. For whoever tells PyTorch that float32 products may be made otherwise (sets.hpp says when).
//
// PARTS 1: both factors are rounded to bfloat16. PARTS 3: each is the sum of three numbers of bfloat16, to the last bit, and of the nine
// products of parts the six are made that a float's last bit can tell: h h + (h m + m h) + (m m + h l + l h). What is small is added
// up first. A number that is none of these has no other parts: infinity stays infinity.
//
// A tile is 16 rows of 64 bytes; one instruction adds the products of 16 rows by 32 k with 32 k by 16 columns to a tile of sums. A
// row's bits depend neither on the rows beside it nor on threads: what does not exist is multiplied as zeros.
#pragma once

#include "products.hpp"

#if defined(__AMX_BF16__)
#include <immintrin.h>

#ifndef ELMAN_PARTS
#error "say of how many parts a factor is: -DELMAN_PARTS=1 or 3"
#endif

namespace elman {
namespace ELMAN_ISA {

constexpr int PARTS = ELMAN_PARTS;
constexpr int LEFT = PARTS == 1 ? 1 : 4;       // tiles of a left factor: h, m, l, and h without what is no number
constexpr int64_t SIDE = 16;                   // rows of a tile; columns of one of sums
constexpr int64_t PAIRS = 2 * SIDE;            // k of a tile of factors: a word of it holds k and k + 1
constexpr int64_t TILE = SIDE * SIDE;          // words of a tile
constexpr int64_t LEAST = 16;                  // k of a product: with fewer of them a packed weight would need more room than there is
constexpr int64_t FEWEST = PARTS == 1 ? 1 : 8;  // rows outside the loop: fewer take longer by six products of filled tiles
constexpr int64_t STRIP = 2 * SIDE;            // rows that are multiplied at once
constexpr int64_t CHAIN = DEEP;                 // k that a strip is packed for at once
constexpr int64_t COLUMNS = PARTS == 1 ? 512 : 384;  // of a block outside the loop
static_assert(PANEL<float> == 2 * SIDE, "a panel is two tiles wide");

INLINE int64_t tiles_of(int64_t k) { return (k + PAIRS - 1) / PAIRS; }
INLINE int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }
INLINE __mmask16 lanes_of(int64_t n) { return __mmask16(n >= SIDE ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

// Words of a panel of so many k.
INLINE int64_t panel_of(int64_t k) { return tiles_of(k) * 2 * PARTS * TILE; }

// While it lives, all eight tiles are 16 rows of 64 bytes: 0 to 3 of sums, 4 to 7 of factors.
struct Tiles {
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, none[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
        } const form;
        _tile_loadconfig(&form);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// --- packing ----------------------------------------------------------------------------------------------------------------

typedef uint16_t Narrow __attribute__((vector_size(32)));
typedef VectorOf<float>::unsigned_bits Words;

// 16 numbers of bfloat16 as the upper halves of words, which are floats.
INLINE Words upper(__m256bh x) { return __builtin_convertvector((Narrow)x, Words) << 16; }

// What a number has beside its part; nothing beside what is none.
INLINE __m512 beside(__m512 x, Words part) {
    constexpr int NONE = 0x99;  // NaN, infinity
    return _mm512_maskz_sub_ps(__mmask16(~_mm512_fpclass_ps_mask((__m512)part, NONE)), x, (__m512)part);
}

INLINE Words defined(Words pairs) {
    const Words low = pairs << 16, high = pairs & 0xffff0000u;
    const __mmask16 of_low = __mmask16(~_mm512_fpclass_ps_mask((__m512)low, 0x99)), of_high = __mmask16(~_mm512_fpclass_ps_mask((__m512)high, 0x99));
    return (Words)_mm512_maskz_mov_epi32(of_low, (__m512i)(low >> 16)) | (Words)_mm512_maskz_mov_epi32(of_high, (__m512i)high);
}

// Writes a row of each of a factor's tiles: the next part of 32 numbers, in pairs. `next` takes it from them.
template <bool RIGHT, class Next>
INLINE void parts(Next next, uint32_t* to) {
    auto put = [&](int part, Words row) { store<float>(reinterpret_cast<float*>(to) + part * TILE, (Vec<float>)row); };
    const Words first = next();
    put(0, first);
    if constexpr (PARTS == 3) {
        put(1, next());
        put(2, next());
        if constexpr (!RIGHT) put(3, defined(first));
    }
}

// A factor's tiles: `lines` of 16, `depth` of 32 k, zeros for the others; WHOLE: all of them. Element (line, k) is
// from[line * apart + k * along]; ACROSS: apart is 1, else along is, and the other is given. RIGHT: row p of a tile holds k = 2 p and 2 p + 1
// of all lines; else row i holds line i.
template <bool RIGHT, bool ACROSS, bool WHOLE>
ONCE void factor(const float* from, int64_t apart, int64_t lines, int64_t depth, uint32_t* to) {
    if (WHOLE) lines = SIDE, depth = PAIRS;
    const __mmask16 here = lanes_of(ACROSS ? lines : depth), behind = lanes_of(depth - SIDE);
    for (int64_t i = 0; i < SIDE; i++) {
        __m512 a, b;
        if constexpr (ACROSS) {  // k and k + 1 of 16 lines that lie side by side
            a = _mm512_maskz_loadu_ps(2 * i < depth ? here : 0, from + 2 * i * apart);
            b = _mm512_maskz_loadu_ps(2 * i + 1 < depth ? here : 0, from + (2 * i + 1) * apart);
            auto next = [&] {
                const Words low = upper(_mm512_cvtneps_pbh(a)), high = upper(_mm512_cvtneps_pbh(b));
                a = beside(a, low), b = beside(b, high);
                return low >> 16 | high;
            };
            parts<RIGHT>(next, to + i * SIDE);
        } else {  // 32 k of a line
            a = _mm512_maskz_loadu_ps(i < lines ? here : 0, from + i * apart);
            b = _mm512_maskz_loadu_ps(i < lines ? behind : 0, from + i * apart + SIDE);
            auto next = [&] {
                const __m512bh both = _mm512_cvtne2ps_pbh(b, a);
                if constexpr (PARTS > 1) {
                    a = beside(a, upper((__m256bh)_mm512_castsi512_si256((__m512i)both)));
                    b = beside(b, upper((__m256bh)_mm512_extracti64x4_epi64((__m512i)both, 1)));
                }
                return (Words)both;
            };
            parts<RIGHT>(next, to + i * SIDE);
        }
    }
    if constexpr (ACROSS != RIGHT)
        for (int part = 0; part < (RIGHT ? PARTS : LEFT); part++) {
            float* const tile = reinterpret_cast<float*>(to + part * TILE);
            Vec<float> rows[SIDE];
#pragma GCC unroll 16
            for (int64_t i = 0; i < SIDE; i++) rows[i] = load(tile + i * SIDE);
            transpose<float>(rows);
#pragma GCC unroll 16
            for (int64_t i = 0; i < SIDE; i++) store<float>(tile + i * SIDE, rows[i]);
        }
}

// The same, however it lies.
template <bool RIGHT>
INLINE void factor(const float* from, int64_t apart, int64_t along, int64_t lines, int64_t depth, uint32_t* to) {
    float copied[SIDE * PAIRS];
    const bool whole = lines >= SIDE && depth >= PAIRS;
    if (along == 1) return whole ? factor<RIGHT, false, true>(from, apart, lines, depth, to) : factor<RIGHT, false, false>(from, apart, lines, depth, to);
    if (apart == 1) return whole ? factor<RIGHT, true, true>(from, along, lines, depth, to) : factor<RIGHT, true, false>(from, along, lines, depth, to);
    for (int64_t i = 0; i < lines; i++)
        for (int64_t k = 0; k < depth; k++) copied[i * PAIRS + k] = from[i * apart + k * along];
    factor<RIGHT, false, false>(copied, PAIRS, lines, depth, to);
}

// w [K, N] in panels of 32 columns: of every 32 k the tiles of the first 16 columns, and those of the others.
static void pack_panels(const float* w, int64_t sk, int64_t sn, int64_t K, int64_t N, uint32_t* to) {
    for (int64_t n = 0; n < N; n += 2 * SIDE)
        for (int64_t k = 0; k < K; k += PAIRS)
            for (int64_t here = n; here < n + 2 * SIDE; here += SIDE, to += PARTS * TILE)
                factor<true>(w + k * sk + here * sn, sn, sk, at_most(N - here, SIDE), at_most(K - k, PAIRS), to);
}

// a [rows, K], rows at most a strip, as tiles: those of the first 16 rows by k, and those of the others.
static void pack_left(const float* a, int64_t row, int64_t column, int64_t rows, int64_t K, uint32_t* to) {
    for (int64_t i = 0; i < rows; i += SIDE)
        for (int64_t k = 0; k < K; k += PAIRS, to += LEFT * TILE)
            factor<false>(a + i * row + k * column, row, column, at_most(rows - i, SIDE), at_most(K - k, PAIRS), to);
}

// --- multiplying ------------------------------------------------------------------------------------------------------------

constexpr int64_t LINE_BYTES = SIDE * int64_t(sizeof(uint32_t));  // of a row of a tile of factors

// The tiles of sums, to which the products of two tiles of rows with a panel, or of one with two panels, of 32 k are added: of these
// parts of both. a, b: the tiles of these k; down, across: words to those of the other rows, and of the other panel. AGAIN: the left
// one's, or the right one's, are loaded already (R 2).
template <int R, int OF_A, int OF_B, bool SAME_A = false, bool SAME_B = false>
INLINE void add_products(const uint32_t* a, const uint32_t* b, int64_t down, int64_t across) {
    a += OF_A * TILE, b += OF_B * TILE;
    if constexpr (!SAME_A || R == 1) _tile_loadd(4, a, LINE_BYTES);
    if constexpr (R == 2) {
        if constexpr (!SAME_A) _tile_loadd(5, a + down, LINE_BYTES);
        if constexpr (!SAME_B) {
            _tile_loadd(6, b, LINE_BYTES);
            _tile_loadd(7, b + PARTS * TILE, LINE_BYTES);
        }
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    } else {
        _tile_loadd(5, b, LINE_BYTES);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, b + PARTS * TILE, LINE_BYTES);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, b + across, LINE_BYTES);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, b + across + PARTS * TILE, LINE_BYTES);
        _tile_dpbf16ps(3, 4, 5);
    }
}

template <int R>
INLINE void add_all(const uint32_t* a, const uint32_t* b, int64_t across, int64_t depth) {
    constexpr int H = 0, M = 1, L = 2, DEFINED = 3;
    const int64_t down = depth * LEFT * TILE;
    if constexpr (PARTS == 3)
        for (int64_t k = 0; k < depth; k++) {
            const uint32_t *left = a + k * LEFT * TILE, *right = b + k * 2 * PARTS * TILE;
            add_products<R, M, M>(left, right, down, across);
            add_products<R, DEFINED, M, false, true>(left, right, down, across);
            add_products<R, DEFINED, L, true, false>(left, right, down, across);
            add_products<R, L, H>(left, right, down, across);
            add_products<R, M, H, false, true>(left, right, down, across);
        }
    for (int64_t k = 0; k < depth; k++) add_products<R, H, H>(a + k * LEFT * TILE, b + k * 2 * PARTS * TILE, down, across);
}

// Sums that begin with `from` in the tiles, where it is there and all rows and columns are.
template <int R>
INLINE void sums_in_place(const uint32_t* a, const uint32_t* b, int64_t across, int64_t depth, const float* from, int64_t from_row, float* to, int64_t to_row) {
    const int64_t in = from_row * int64_t(sizeof(float)), on = to_row * int64_t(sizeof(float));
    const int64_t third = R == 2 ? SIDE * from_row : 2 * SIDE, last = R == 2 ? SIDE * to_row : 2 * SIDE;
    if (from) {
        _tile_loadd(0, from, in);
        _tile_loadd(1, from + SIDE, in);
        _tile_loadd(2, from + third, in);
        _tile_loadd(3, from + third + SIDE, in);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    add_all<R>(a, b, across, depth);
    _tile_stored(0, to, on);
    _tile_stored(1, to + SIDE, on);
    _tile_stored(2, to + last, on);
    _tile_stored(3, to + last + SIDE, on);
}

// to = from, or nothing, + a · b of so many tiles of k: R tiles of rows, and a panel or two, of which so many rows and columns exist.
template <int R>
INLINE void block(const uint32_t* a, const uint32_t* b, int64_t across, int64_t depth, const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows,
                  int64_t columns) {
    constexpr int64_t ROWS = R * SIDE, WIDTH = 4 * SIDE / R;
    alignas(64) float made[ROWS * WIDTH];
    if constexpr (PARTS == 1) {
        if (rows == ROWS && columns == WIDTH) return sums_in_place<R>(a, b, across, depth, from, from_row, to, to_row);
        if (from) fill_up<float>(from, from_row, rows, columns, WIDTH, made);
        sums_in_place<R>(a, b, across, depth, from ? made : nullptr, WIDTH, made, WIDTH);
        return put_back<float>(made, WIDTH, rows, columns, to, to_row);
    }
    // A sum of many small things begins with nothing: what it is added to would round each of them.
    sums_in_place<R>(a, b, across, depth, nullptr, 0, made, WIDTH);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < columns; n += SIDE) {
            const __mmask16 here = lanes_of(columns - n);
            __m512 sum = _mm512_load_ps(made + r * WIDTH + n);
            if (from) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(here, from + r * from_row + n));
            _mm512_mask_storeu_ps(to + r * to_row + n, here, sum);
        }
}

// A strip of rows and columns 0 … columns - 1 of packed panels, `apart` words from one to the next.
static void strip_of_blocks(const uint32_t* a, const uint32_t* b, int64_t apart, int64_t depth, const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows,
                            int64_t columns) {
    for (int64_t n = 0; n < columns;) {
        const float* const begin = from ? from + n : nullptr;
        const uint32_t* const panel = b + n / (2 * SIDE) * apart;
        const int64_t left = columns - n;
        if (rows > SIDE) {
            block<2>(a, panel, 0, depth, begin, from_row, to + n, to_row, rows, at_most(left, 2 * SIDE));
            n += 2 * SIDE;
        } else {  // where there is no other panel, this one is multiplied once more, for nobody
            block<1>(a, panel, left > 2 * SIDE ? apart : 0, depth, begin, from_row, to + n, to_row, rows, at_most(left, 4 * SIDE));
            n += 4 * SIDE;
        }
    }
}

// As `product`, w packed by pack_panels.
static void product_by_tiles(const float* a, int64_t lda, const uint32_t* w, int64_t K, const float* start, int64_t lds, float* out, int64_t ldo, int64_t rows,
                             int64_t first, int64_t stop) {
    alignas(64) uint32_t left[STRIP * CHAIN / 2 * LEFT];
    const Tiles formed;
    w += first / (2 * SIDE) * panel_of(K);
    for (int64_t row = 0; row < rows; row += STRIP)
        for (int64_t k = 0; k < K; k += CHAIN) {
            const int64_t here = at_most(rows - row, STRIP), depth = at_most(K - k, CHAIN);
            pack_left(a + row * lda + k, lda, 1, here, depth, left);
            float* const to = out + row * ldo + first;
            const float* const from = k ? to : start ? start + row * lds + first : nullptr;
            strip_of_blocks(left, w + panel_of(k), panel_of(K), tiles_of(depth), from, k ? ldo : lds, to, ldo, here, stop - first);
        }
}

constexpr int64_t TILED_BLOCK = (COLUMNS * PARTS + STRIP * LEFT) * CHAIN / 2;  // words of what matrices.hpp packs at once

}  // namespace ELMAN_ISA
}  // namespace elman
#endif

namespace elman {
namespace ELMAN_ISA {

#if !defined(__AMX_BF16__)
constexpr int64_t TILED_BLOCK = 0;
#endif

// Whether a product over so many k is one of these.
template <class T>
INLINE bool by_tiles(int64_t k) {
#if defined(__AMX_BF16__)
    return sizeof(T) == sizeof(float) && k >= LEAST;
#else
    (void)k;
    return false;
#endif
}

// `pack`, and `product` of what it packs, one way or the other. room: elements of so many packed columns, whole panels.
template <class T>
INLINE int64_t room(int64_t K, int64_t columns) {
#if defined(__AMX_BF16__)
    if (by_tiles<T>(K)) return columns / PANEL<T> * panel_of(K);
#endif
    return columns * K;
}

template <class T>
INLINE void pack_weight(const T* w, int64_t sk, int64_t sn, int64_t K, int64_t N, T* to) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == sizeof(float))
        if (by_tiles<T>(K)) return pack_panels(w, sk, sn, K, N, reinterpret_cast<uint32_t*>(to));
#endif
    pack<T>(w, sk, sn, K, N, to);
}

template <class T>
INLINE void weighted(const T* a, int64_t lda, const T* w, int64_t K, const T* start, int64_t lds, T* out, int64_t ldo, int64_t rows, int64_t first, int64_t stop) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == sizeof(float))
        if (by_tiles<T>(K)) return product_by_tiles(a, lda, reinterpret_cast<const uint32_t*>(w), K, start, lds, out, ldo, rows, first, stop);
#endif
    product<T>(a, lda, w, K, start, lds, out, ldo, rows, first, stop);
}

}  // namespace ELMAN_ISA
}  // namespace elman
