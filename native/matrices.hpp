// Matrix products outside the loop, whose rows are all rows of all steps: what the loop is fed with, and afterwards the
// gradients of weights and inputs. Several products that do not need one another are one call of the team.
//
// Both operands are cut into blocks that stay in the nearer caches. A block of the right one is packed into panels, and so
// is the left one where its rows do not lie in order (a transposed matrix). Sums longer than a block are summed
// block by block, which is also more exact. Threads share out the rows or the columns of a result, never a sum: the bits
// are the same for any number of threads.
#pragma once

#include "amx.hpp"
#include "products.hpp"
#include "team.hpp"

namespace elman {
namespace ELMAN_ISA {

constexpr int64_t BROAD = 256;   // columns
constexpr int64_t HIGH = 8;      // strips of rows
constexpr int64_t BRIEF = 32;    // terms of a sum
constexpr int64_t SHALLOW = 512;  // rows; with fewer of them threads had better not pack the same columns, each for itself

template <class T>
constexpr int64_t packed_elements = DEEP * BROAD + DEEP * HIGH * TALLEST + 2 * 64 / int64_t(sizeof(T));

// [K, R] of a: the rows of a strip, side by side.
template <class T, int R>
static void pack_rows(const T* a, int64_t row, int64_t column, int64_t K, T* to) {
    if (row == 1) {
        for (int64_t k = 0; k < K; k++) __builtin_memcpy(to + k * R, a + k * column, R * sizeof(T));
        return;
    }
    for (int64_t k = 0; k < K; k++)
        for (int r = 0; r < R; r++) to[k * R + r] = a[r * row + k * column];
}

template <class T>
static void pack_strip(int64_t R, const T* a, int64_t row, int64_t column, int64_t K, T* to) {
    switch (R) {
#define ELMAN_PACK(R) \
    case R: return pack_rows<T, R>(a, row, column, K, to);
        ELMAN_HEIGHTS(ELMAN_PACK)
#undef ELMAN_PACK
    }
}

template <class T, bool TURNED>
static void any_tile(int64_t R, const T* a, int64_t lda, const T* w, int64_t K, const T* start, int64_t lds, T* out, int64_t ldo, int64_t n, bool add) {
    switch (R) {
#define ELMAN_TILE(R) \
    case R: return tile<T, R, 1, TURNED>(a, lda, w, K, start, lds, out, ldo, n, add);
        ELMAN_HEIGHTS(ELMAN_TILE)
#undef ELMAN_TILE
    }
}

// A piece of a product: rows, columns, and the part of its sums that is added now.
struct Piece {
    int64_t first_row, stop_row, first, stop, first_k, stop_k;
};

#if defined(__AMX_BF16__)
// The same in bfloat16. A number takes half the room, so blocks of the right operand are twice as broad.
static void multiply_piece_in_halves(const Matrices& p, const Piece& piece, float* space) {
    uint32_t *panels = reinterpret_cast<uint32_t*>(space), *strip = panels + DEEP * BROAD;
    const float *a = reinterpret_cast<const float*>(p.a), *b = reinterpret_cast<const float*>(p.b), *start = reinterpret_cast<const float*>(p.start);
    float* out = reinterpret_cast<float*>(p.out);
    const Tiles formed;
    for (int64_t n = piece.first; n < piece.stop; n += 2 * BROAD)
        for (int64_t k = piece.first_k; k < piece.stop_k; k += DEEP) {
            const int64_t columns = at_most(piece.stop - n, 2 * BROAD), depth = at_most(piece.stop_k - k, DEEP);
            pack_halves_of(b + k * p.b_row + n * p.b_column, p.b_row, p.b_column, depth, columns, panels);
            for (int64_t row = piece.first_row; row < piece.stop_row; row += STRIP) {
                const int64_t rows = at_most(piece.stop_row - row, STRIP);
                pack_strip_of(a + row * p.a_row + k * p.a_column, p.a_row, p.a_column, rows, depth, strip);
                float* const to = out + row * p.out_row + n;
                const float* const from = k ? to : start ? start + row * p.start_row + n : nullptr;
                strip_of_blocks(strip, panels, tiles_of(depth) * 2 * TILE, tiles_of(depth), from, k ? p.out_row : p.start_row, to, p.out_row, rows, columns);
            }
        }
}
#endif

template <class T>
static void multiply_piece(const Matrices& p, const Piece& piece, T* space) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == sizeof(float))
        if (in_halves<T>(p.k)) return multiply_piece_in_halves(p, piece, space);
#endif
    constexpr int64_t P = PANEL<T>;
    T *panels = space, *strips = space + DEEP * BROAD;
    const T *a = reinterpret_cast<const T*>(p.a), *b = reinterpret_cast<const T*>(p.b), *start = reinterpret_cast<const T*>(p.start);
    T* out = reinterpret_cast<T*>(p.out);
    const bool turned = p.a_column != 1;
    const int64_t rows = piece.stop_row - piece.first_row;
    const int64_t count = (rows + TALLEST - 1) / TALLEST;  // strips, all as high as they can be alike
    auto row_of = [&](int64_t strip) { return piece.first_row + rows * strip / count; };
    int64_t first = piece.first;
    if (!turned && piece.first_k == 0 && piece.stop_k == p.k)  // with a row or two packing would take longer than multiplying
        first += unpacked<T>(a + piece.first_row * p.a_row, p.a_row, b + first * p.b_column, p.b_row, p.b_column, p.k,
                             start ? start + piece.first_row * p.start_row + first : nullptr, p.start_row,
                             out + piece.first_row * p.out_row + first, p.out_row, rows, piece.stop - first);
    // For few rows what is packed is read at once, out of the nearest cache. For short sums writing takes longest: rows are written one
    // after the other, as far as what is packed stays in that cache.
    const int64_t depth = piece.stop_k - piece.first_k;
    const bool brief = count > 2 && depth <= BRIEF;
    const int64_t broad = count <= 2 ? P : brief ? BRIEF * BROAD / (depth > 1 ? depth : 1) / P * P : BROAD;
    for (int64_t n0 = first; n0 < piece.stop; n0 += broad) {
        const int64_t n1 = piece.stop - n0 < broad ? piece.stop : n0 + broad;
        int64_t k0 = piece.first_k;
        do {
            const int64_t K = piece.stop_k - k0 < DEEP ? piece.stop_k - k0 : DEEP;
            pack<T>(b + k0 * p.b_row + n0 * p.b_column, p.b_row, p.b_column, K, n1 - n0, panels);
            for (int64_t i0 = 0; i0 < count; i0 += HIGH) {
                const int64_t i1 = count - i0 < HIGH ? count : i0 + HIGH;
                if (turned)
                    for (int64_t i = i0; i < i1; i++)
                        pack_strip<T>(row_of(i + 1) - row_of(i), a + row_of(i) * p.a_row + k0 * p.a_column, p.a_row, p.a_column, K,
                                      strips + (row_of(i) - row_of(i0)) * K);
                auto one = [&](int64_t i, int64_t n) {
                    const int64_t row = row_of(i), R = row_of(i + 1) - row;
                    const T* from = start && k0 == 0 ? start + row * p.start_row + n : nullptr;
                    T* to = out + row * p.out_row + n;
                    const T* w = panels + (n - n0) * K;
                    if (turned)
                        any_tile<T, true>(R, strips + (row - row_of(i0)) * K, 0, w, K, from, p.start_row, to, p.out_row, n1 - n, k0 > 0);
                    else
                        any_tile<T, false>(R, a + row * p.a_row + k0, p.a_row, w, K, from, p.start_row, to, p.out_row, n1 - n, k0 > 0);
                };
                if (brief)
                    for (int64_t i = i0; i < i1; i++)
                        for (int64_t n = n0; n < n1; n += P) one(i, n);
                else
                    for (int64_t n = n0; n < n1; n += P)
                        for (int64_t i = i0; i < i1; i++) one(i, n);
            }
            k0 += DEEP;
        } while (k0 < piece.stop_k);
    }
}

// out [n] += or = the sum of b's rows first_k … stop_k - 1, columns first … stop - 1; NORMAL: each times a normalised row of a.
template <class T, bool NORMAL>
static void sum_piece(const Matrices& p, const Piece& piece) {
    constexpr int64_t L = LANES<T>, MANY = NORMAL ? 4 : 8;
    const T *a = reinterpret_cast<const T*>(p.a), *b = reinterpret_cast<const T*>(p.b);
    const T *means = reinterpret_cast<const T*>(p.start), *times = reinterpret_cast<const T*>(p.times);
    T* out = reinterpret_cast<T*>(p.out);
    int64_t n = piece.first, k0 = piece.first_k;
    do {
        const int64_t k1 = piece.stop_k - k0 < DEEP ? piece.stop_k : k0 + DEEP;
        auto columns = [&](auto width) {
            constexpr int W = decltype(width)::value;
            Vec<T> sum[W] = {};
            for (int64_t k = k0; k < k1; k++) {
                const Vec<T> mean = splat<T>(NORMAL ? means[k * p.start_row] : T(0)), by = splat<T>(NORMAL ? times[k * p.times_row] : T(0));
#pragma GCC unroll 8
                for (int i = 0; i < W; i++) {
                    const Vec<T> here = load(b + k * p.b_row + n + i * L);
                    if constexpr (NORMAL)
                        sum[i] += here * by_itself<T>((load(a + k * p.a_row + n + i * L) - mean) * by);
                    else
                        sum[i] += here;
                }
            }
            for (int i = 0; i < W; i++) store<T>(out + n + i * L, k0 > 0 ? load(out + n + i * L) + sum[i] : sum[i]);
            n += W * L;
        };
        n = piece.first;
        if (p.b_column == 1 && (!NORMAL || p.a_column == 1)) {
            while (n + MANY * L <= piece.stop) columns(Number<MANY>{});
            while (n + L <= piece.stop) columns(Number<1>{});
        }
        for (; n < piece.stop; n++) {
            T sum = 0;
            for (int64_t k = k0; k < k1; k++) {
                const T here = b[k * p.b_row + n * p.b_column];
                sum += !NORMAL ? here : here * ((a[k * p.a_row + n * p.a_column] - means[k * p.start_row]) * times[k * p.times_row]);
            }
            out[n] = k0 > 0 ? out[n] + sum : sum;
        }
        k0 += DEEP;
    } while (k0 < piece.stop_k);
}

// Products that are computed together. Most of them read the same rows, either row by row or summed over all rows: so the
// rows are taken in chunks that stay in the cache until all products have used them.
template <class T>
struct Multiplying {
    const Matrices* products;
    int64_t count;
    T* space;

    int64_t rows() const {
        int64_t most = 0;
        for (int64_t i = 0; i < count; i++) {
            const int64_t here = products[i].sums || products[i].k > products[i].m ? products[i].k : products[i].m;
            most = here > most ? here : most;
        }
        return most;
    }

    int64_t chunk(int64_t all) const {
        int64_t wide = 0;  // elements that the products read and write of a row
        for (int64_t i = 0; i < count; i++) {
            const Matrices& p = products[i];
            if (p.m != all && p.k != all) return all;
            // What begins with another one's sum has to find it complete.
            for (int64_t j = 0; j < i; j++)
                if (p.start && p.start == products[j].out && p.m != all) return all;
            wide += p.n + (p.sums ? (p.a ? p.n : 0) : p.m == all ? p.k : p.m);
        }
        const int64_t fitting = (512 << 10) / (wide * int64_t(sizeof(T)) + 1) / DEEP * DEEP;
        return fitting < DEEP ? all : fitting;
    }

    void work(int thread, int threads) const {
        auto shared = [](int64_t all, int64_t unit, int64_t i, int64_t n) { return i >= n ? all : (all / unit) * i / n * unit; };
        T* mine = space + thread * packed_elements<T>;
        mine += (64 - int64_t(reinterpret_cast<uintptr_t>(mine)) % 64) % 64 / int64_t(sizeof(T));
        const int64_t all = rows(), step = chunk(all);
        int64_t r0 = 0;
        do {
            const int64_t r1 = all - r0 < step ? all : r0 + step;
            for (int64_t i = 0; i < count; i++) {
                const Matrices& p = products[i];
                Piece piece = {0, p.m, 0, p.n, 0, p.k};
                if (!p.sums && p.m == all && (p.m >= SHALLOW || p.n < 2 * threads * PANEL<T>)) {
                    piece.first_row = r0 + shared(r1 - r0, 1, thread, threads), piece.stop_row = r0 + shared(r1 - r0, 1, thread + 1, threads);
                } else {
                    if (p.m == all && !p.sums)
                        piece.first_row = r0, piece.stop_row = r1;
                    else if (p.k == all)
                        piece.first_k = r0, piece.stop_k = r1;
                    if (!p.sums && p.m >= p.n && p.m != all)
                        piece.first_row = shared(p.m, 1, thread, threads), piece.stop_row = shared(p.m, 1, thread + 1, threads);
                    else
                        piece.first = shared(p.n, PANEL<T>, thread, threads), piece.stop = shared(p.n, PANEL<T>, thread + 1, threads);
                }
                if (piece.first_row >= piece.stop_row || piece.first >= piece.stop) continue;
                if (p.sums && p.a)
                    sum_piece<T, true>(p, piece);
                else if (p.sums)
                    sum_piece<T, false>(p, piece);
                else
                    multiply_piece<T>(p, piece, mine);
            }
            r0 = r1;
        } while (r0 < all);
    }
};

INLINE int matrices_team(const Matrices* products, int64_t count, int threads) {
    int64_t work = 0;
    for (int64_t i = 0; i < count; i++) work += products[i].m * products[i].n * products[i].k;
    const int64_t worth = work >> 18;  // fewer operations than that take no longer than waking a thread
    return worth < 1 ? 1 : worth < threads ? int(worth) : threads;
}

template <class T>
static int64_t multiply_bytes(const Matrices* products, int64_t count, int threads) {
    return matrices_team(products, count, threads) * packed_elements<T> * int64_t(sizeof(T));
}

template <class T>
static void multiply(const Matrices* products, int64_t count, int threads, char* space) {
    Multiplying<T> all = {products, count, reinterpret_cast<T*>(space)};
    run_team(matrices_team(products, count, threads),
             [](void* argument, int thread, int of) { static_cast<const Multiplying<T>*>(argument)->work(thread, of); }, &all);
}

}  // namespace ELMAN_ISA
}  // namespace elman
