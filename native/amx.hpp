// Products of floats in bfloat16, by Intel's AMX: both factors are rounded to its numbers (8 bits of a float's 24), and what they
// make is added up in float32. A tile is 16 rows of 64 bytes; one instruction adds the products of 16 rows by 32 k with 32 k by 16
// columns to a tile of sums, in the time in which vectors of floats do a twentieth of that.
//
// For whoever tells PyTorch that float32 products may be made so (sets.hpp says when). As elsewhere a row's bits depend neither on
// the rows beside it nor on threads: a sum is one chain over all k, wherever it is computed.
#pragma once

#include "products.hpp"

#if defined(__AMX_BF16__)
#include <immintrin.h>

namespace elman {
namespace ELMAN_ISA {

constexpr int64_t SIDE = 16;           // rows of a tile; columns of one of sums
constexpr int64_t PAIRS = 2 * SIDE;    // k of a tile of factors: a word of it holds k and k + 1
constexpr int64_t TILE = SIDE * SIDE;  // words of a tile
constexpr int64_t LEAST = 16;          // k of a product: with fewer of them a packed weight would need more room than as floats
constexpr int64_t STRIP = 2 * SIDE;    // rows that are multiplied at once
static_assert(PANEL<float> == 2 * SIDE, "a panel is two tiles wide");

INLINE int64_t tiles_of(int64_t k) { return (k + PAIRS - 1) / PAIRS; }
INLINE int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }
INLINE __mmask16 lanes_of(int64_t n) { return __mmask16(n >= SIDE ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

// While it lives, all eight tiles are 16 rows of 64 bytes: four of sums, four of factors.
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

// 32 k of a line that lies in order, in pairs; and k and k + 1 of 16 lines that lie side by side.
INLINE Vec<float> pairs_along(const float* line, __mmask16 left, __mmask16 right) {
    return (Vec<float>)(__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(right, line + SIDE), _mm512_maskz_loadu_ps(left, line));
}

INLINE Vec<float> pairs_across(const float* even, const float* odd, __mmask16 left, __mmask16 right) {
    typedef uint16_t Halves __attribute__((vector_size(32)));
    typedef VectorOf<float>::unsigned_bits Words;
    auto words = [](const float* from, __mmask16 there) {
        return __builtin_convertvector((Halves)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, from)), Words);
    };
    return (Vec<float>)(words(even, left) | words(odd, right) << 16);
}

// A tile of factors: `lines` of 16, `depth` of 32 k, zeros for the others; WHOLE: all of them. Element (line, k) is
// from[line * apart + k * along], ACROSS: apart is 1, else along is. BY_PAIR, for what stands on the right: row p holds k = 2 p and 2 p + 1
// of all lines; else, on the left, row i holds line i.
template <bool BY_PAIR, bool ACROSS, bool WHOLE>
ONCE void halve(const float* from, int64_t apart, int64_t lines, int64_t depth, uint32_t* to) {
    Vec<float> rows[SIDE];
    if (WHOLE) lines = SIDE, depth = PAIRS;
    const __mmask16 here = lanes_of(ACROSS ? lines : depth), behind = ACROSS ? here : lanes_of(depth - SIDE);
#pragma GCC unroll 16
    for (int64_t i = 0; i < SIDE; i++)
        if constexpr (ACROSS)
            rows[i] = pairs_across(from + 2 * i * apart, from + (2 * i + 1) * apart, 2 * i < depth ? here : 0, 2 * i + 1 < depth ? here : 0);
        else
            rows[i] = pairs_along(from + i * apart, i < lines ? here : 0, i < lines ? behind : 0);
    if constexpr (ACROSS != BY_PAIR) transpose<float>(rows);
#pragma GCC unroll 16
    for (int64_t i = 0; i < SIDE; i++) store<float>(reinterpret_cast<float*>(to) + i * SIDE, rows[i]);
}

// The same, however it lies.
template <bool BY_PAIR>
INLINE void halve(const float* from, int64_t apart, int64_t along, int64_t lines, int64_t depth, uint32_t* to) {
    float copied[SIDE * PAIRS];
    const bool whole = lines >= SIDE && depth >= PAIRS;
    if (along == 1) return whole ? halve<BY_PAIR, false, true>(from, apart, lines, depth, to) : halve<BY_PAIR, false, false>(from, apart, lines, depth, to);
    if (apart == 1) return whole ? halve<BY_PAIR, true, true>(from, along, lines, depth, to) : halve<BY_PAIR, true, false>(from, along, lines, depth, to);
    for (int64_t i = 0; i < lines; i++)
        for (int64_t k = 0; k < depth; k++) copied[i * PAIRS + k] = from[i * apart + k * along];
    halve<BY_PAIR, false, false>(copied, PAIRS, lines, depth, to);
}

// w [K, N] in panels of 32 columns: of every 32 k a tile of the first 16 columns, and one of the others.
static void pack_halves_of(const float* w, int64_t sk, int64_t sn, int64_t K, int64_t N, uint32_t* to) {
    for (int64_t n = 0; n < N; n += 2 * SIDE)
        for (int64_t k = 0; k < K; k += PAIRS)
            for (int64_t here = n; here < n + 2 * SIDE; here += SIDE, to += TILE)
                halve<true>(w + k * sk + here * sn, sn, sk, at_most(N - here, SIDE), at_most(K - k, PAIRS), to);
}

// a [rows, K], rows at most a strip, as tiles: those of the first 16 rows by k, and those of the others.
static void pack_strip_of(const float* a, int64_t row, int64_t column, int64_t rows, int64_t K, uint32_t* to) {
    for (int64_t i = 0; i < rows; i += SIDE)
        for (int64_t k = 0; k < K; k += PAIRS, to += TILE)
            halve<false>(a + i * row + k * column, row, column, at_most(rows - i, SIDE), at_most(K - k, PAIRS), to);
}

// Two tiles of rows (R 2) and a panel, or one and two panels: `to` = `from`, or zeros, + a · b of so many tiles of k. b_apart: words from
// one panel to the next.
template <int R>
INLINE void whole_block(const uint32_t* a, const uint32_t* b, int64_t b_apart, int64_t depth, const float* from, int64_t from_row, float* to, int64_t to_row) {
    constexpr int64_t W = SIDE * sizeof(uint32_t);  // bytes from one row of a tile to the next
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
    for (int64_t k = 0; k < depth; k++, a += TILE, b += 2 * TILE) {
        _tile_loadd(4, a, W);
        _tile_loadd(6, b, W);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE, W);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (R == 2) {
            _tile_loadd(5, a + depth * TILE, W);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        } else {
            _tile_loadd(5, b + b_apart, W);
            _tile_dpbf16ps(2, 4, 5);
            _tile_loadd(6, b + b_apart + TILE, W);
            _tile_dpbf16ps(3, 4, 6);
        }
    }
    _tile_stored(0, to, on);
    _tile_stored(1, to + SIDE, on);
    _tile_stored(2, to + last, on);
    _tile_stored(3, to + last + SIDE, on);
}

// The same where fewer rows or columns exist.
template <int R>
INLINE void block(const uint32_t* a, const uint32_t* b, int64_t b_apart, int64_t depth, const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows,
                  int64_t columns) {
    constexpr int64_t ROWS = R * SIDE, COLUMNS = 4 * SIDE / R;
    if (rows == ROWS && columns == COLUMNS) return whole_block<R>(a, b, b_apart, depth, from, from_row, to, to_row);
    alignas(64) float begun[ROWS * COLUMNS];
    if (from) fill_up<float>(from, from_row, rows, columns, COLUMNS, begun);
    whole_block<R>(a, b, b_apart, depth, from ? begun : nullptr, COLUMNS, begun, COLUMNS);
    put_back<float>(begun, COLUMNS, rows, columns, to, to_row);
}

// A strip of rows and columns 0 … columns - 1 of packed panels.
static void strip_of_blocks(const uint32_t* a, const uint32_t* b, int64_t b_apart, int64_t depth, const float* from, int64_t from_row, float* to, int64_t to_row,
                            int64_t rows, int64_t columns) {
    for (int64_t n = 0; n < columns;) {
        const float* const begin = from ? from + n : nullptr;
        const uint32_t* const panel = b + n / (2 * SIDE) * b_apart;
        const int64_t left = columns - n;
        if (rows > SIDE) {
            block<2>(a, panel, 0, depth, begin, from_row, to + n, to_row, rows, at_most(left, 2 * SIDE));
            n += 2 * SIDE;
        } else {  // where there is no other panel, this one is multiplied once more, for nobody
            block<1>(a, panel, left > 2 * SIDE ? b_apart : 0, depth, begin, from_row, to + n, to_row, rows, at_most(left, 4 * SIDE));
            n += 4 * SIDE;
        }
    }
}

// As `product`, w packed by pack_halves_of.
static void product_in_halves(const float* a, int64_t lda, const uint32_t* w, int64_t K, const float* start, int64_t lds, float* out, int64_t ldo, int64_t rows,
                              int64_t first, int64_t stop) {
    const int64_t panel = tiles_of(K) * 2 * TILE;
    alignas(64) uint32_t left[STRIP * DEEP / 2];
    const Tiles formed;
    for (int64_t row = 0; row < rows; row += STRIP)
        for (int64_t k = 0; k < K; k += DEEP) {
            const int64_t here = at_most(rows - row, STRIP), depth = at_most(K - k, DEEP);
            pack_strip_of(a + row * lda + k, lda, 1, here, depth, left);
            const float* const from = k ? out + row * ldo + first : start ? start + row * lds + first : nullptr;
            strip_of_blocks(left, w + first / (2 * SIDE) * panel + tiles_of(k) * 2 * TILE, panel, tiles_of(depth), from, k ? ldo : lds, out + row * ldo + first, ldo, here,
                            stop - first);
        }
}

}  // namespace ELMAN_ISA
}  // namespace elman
#endif

namespace elman {
namespace ELMAN_ISA {

// Whether a product over so many k is one of these.
template <class T>
INLINE bool in_halves(int64_t k) {
#if defined(__AMX_BF16__)
    return sizeof(T) == sizeof(float) && k >= LEAST;
#else
    (void)k;
    return false;
#endif
}

// `pack`, and `product` of what it packs, one way or the other.
template <class T>
INLINE void pack_weight(const T* w, int64_t sk, int64_t sn, int64_t K, int64_t N, T* to) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == sizeof(float))
        if (in_halves<T>(K)) return pack_halves_of(w, sk, sn, K, N, reinterpret_cast<uint32_t*>(to));
#endif
    pack<T>(w, sk, sn, K, N, to);
}

// Rows for which a weight is not packed, in any step.
#if defined(__AMX_BF16__)
constexpr int64_t UNPACKED_ROWS = 0;
#else
constexpr int64_t UNPACKED_ROWS = MOST_UNPACKED;
#endif

// Where column n, the first of a panel, is packed.
template <class T>
INLINE T* packed_at(T* to, int64_t K, int64_t n) {
#if defined(__AMX_BF16__)
    if (in_halves<T>(K)) return to + n / (2 * SIDE) * tiles_of(K) * 2 * TILE;  // words, as a float is one
#endif
    return to + n * K;
}

template <class T>
INLINE void weighted(const T* a, int64_t lda, const T* w, int64_t K, const T* start, int64_t lds, T* out, int64_t ldo, int64_t rows, int64_t first, int64_t stop) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == sizeof(float))
        if (in_halves<T>(K)) return product_in_halves(a, lda, reinterpret_cast<const uint32_t*>(w), K, start, lds, out, ldo, rows, first, stop);
#endif
    product<T>(a, lda, w, K, start, lds, out, ldo, rows, first, stop);
}

}  // namespace ELMAN_ISA
}  // namespace elman
