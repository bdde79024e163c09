// Matrix products with a packed right operand: out [rows, N] = start + a [rows, K] · w [K, N].
//
// w is packed into panels of PANEL columns, [K, PANEL] each, the last one filled up with zeros. A tile of a few rows of
// a stays in the nearest cache while the panels stream by. Every element of the result is a sum of chains of multiply-adds
// over DEEP k each, the first of which begins with `start`, whatever tile it falls into: a row's bits depend neither on the
// rows beside it nor on threads, and are the same in a loop as outside (matrices.hpp).
#pragma once

#include "vector.hpp"

namespace elman {
namespace ELMAN_ISA {

template <class T>
constexpr int PANEL = 2 * LANES<T>;

constexpr int64_t DEEP = 256;  // terms of a chain

// How many registers hold sums: 12 of 16, or 24 of 32.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int SUMS = 24;
constexpr int TALLEST = 12;
#define ELMAN_HEIGHTS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#else
constexpr int SUMS = 12;
constexpr int TALLEST = 6;
#define ELMAN_HEIGHTS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif

// Panels that a tile of so many rows takes at once: few rows need more columns to keep the units busy.
constexpr int panels_at_once(int rows) {
    return SUMS / (2 * rows) < 1 ? 1 : SUMS / (2 * rows) > 4 ? 4 : SUMS / (2 * rows);
}

// Copies w (element (k, n) at w[k * sk + n * sn]) into panels; `to` has room for ceil(N / PANEL) * PANEL * K elements.
template <class T>
void pack(const T* w, int64_t sk, int64_t sn, int64_t K, int64_t N, T* to) {
    constexpr int P = PANEL<T>;
    for (int64_t n = 0; n < N; n += P, to += K * P) {
        const int64_t width = N - n < P ? N - n : P;
        const T* from = w + n * sn;
        if (sn == 1 && width == P) {
            for (int64_t k = 0; k < K; k++) {
                store<T>(to + k * P, load(from + k * sk));
                store<T>(to + k * P + LANES<T>, load(from + k * sk + LANES<T>));
            }
            continue;
        }
        if (width < P)
            for (int64_t i = 0; i < K * P; i++) to[i] = 0;
        constexpr int L = LANES<T>, A = AT_A_TIME<T>;
        const int64_t across = sk == 1 ? width / L * L : 0;  // columns that are turned in registers
        for (int64_t j = 0; j < across; j += L) {
            int64_t k = 0;
            for (; k + A <= K; k += A) {
                Vec<T> columns[A];
                load_turned<T>(from + j * sn + k, sn, columns);
#pragma GCC unroll 16
                for (int i = 0; i < A; i++) store<T>(to + (k + i) * P + j, columns[i]);
            }
            for (; k < K; k++)
                for (int64_t i = j; i < j + L; i++) to[k * P + i] = from[k + i * sn];
        }
        for (int64_t k = 0; k < K; k++)
            for (int64_t j = across; j < width; j++) to[k * P + j] = from[k * sk + j * sn];
    }
}

// A packed weight as it is: a row of a panel is two vectors. Narrower ones stand in narrow.hpp.
template <class T>
struct Whole {
    typedef T Stored;
    static constexpr int ROW = PANEL<T>;  // of what is stored, for a row of a panel
    static constexpr bool SCALED = false;
    static constexpr int TALL = TALLEST;  // rows of a tile
    static constexpr int STEPS = 1;       // k that are read at once

    static void read(const T* row, Vec<T>& left, Vec<T>& right) { left = load(row), right = load(row + LANES<T>); }
};

// rows of n elements, to where they lie `width` apart with zeros behind them; and back.
template <class T>
ONCE void fill_up(const T* from, int64_t apart, int64_t rows, int64_t n, int64_t width, T* to) {
    constexpr int L = LANES<T>;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i += L) {
            const T* at = from + r * apart + i;
            store<T>(to + r * width + i, i + L <= n ? load(at) : i < n ? load_part(at, int(n - i)) : Vec<T>{});
        }
}

template <class T>
ONCE void put_back(const T* from, int64_t width, int64_t rows, int64_t n, T* to, int64_t apart) {
    constexpr int L = LANES<T>;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i += L) {
            const Vec<T> v = load(from + r * width + i);
            if (i + L <= n)
                store<T>(to + r * apart + i, v);
            else
                store_part<T>(to + r * apart + i, v, int(n - i));
        }
}

// Bytes of a panel that a tile of many rows asks for before it reads them: from far, one line after another would come too late.
constexpr int64_t AHEAD = 2048;

// A tile of R rows and Q panels. n: columns of it that exist. TURNED: a is [K, R], as matrices.hpp packs it. add: to what
// is there already. W: how w is stored; scale: of its columns, where it is SCALED.
template <class T, int R, int Q, bool TURNED = false, class W = Whole<T>>
ONCE void tile(const T* a, int64_t lda, const typename W::Stored* w, int64_t K, const T* start, int64_t lds, T* out, int64_t ldo, int64_t n, bool add = false,
               const T* scale = nullptr) {
    constexpr int L = LANES<T>, P = PANEL<T>;
    if (n < Q * P) {  // in memory where all columns exist
        T begun[R * Q * P], made[R * Q * P];
        if (start) fill_up<T>(start, lds, R, n, Q * P, begun), start = begun;
        if (add) fill_up<T>(out, ldo, R, n, Q * P, made);
        tile<T, R, Q, TURNED, W>(a, lda, w, K, start, Q * P, made, Q * P, Q * P, add, scale);
        return put_back<T>(made, Q * P, R, n, out, ldo);
    }
    const typename W::Stored* column[Q];
    for (int q = 0; q < Q; q++) column[q] = w + q * ((K + W::STEPS - 1) / W::STEPS * W::STEPS) * W::ROW;
    int64_t k = 0;
    do {
        const int64_t stop = K - k < DEEP ? K : k + DEEP;
        Vec<T> sum[R][2 * Q];
#define ELMAN_EACH(statement)                     \
    _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) \
        _Pragma("GCC unroll 8") for (int q = 0; q < 2 * Q; q++) statement
        if (start && !W::SCALED)
            ELMAN_EACH(sum[r][q] = load(start + r * lds + q * L));
        else
            ELMAN_EACH(sum[r][q] = Vec<T>{});
        if constexpr (W::STEPS == 2)  // two k at a time
            for (; k + 1 < stop; k += 2)
#pragma GCC unroll 4
                for (int q = 0; q < Q; q++) {
                    Vec<T> right[4];
                    W::read_two(column[q] + k * W::ROW, right);
#pragma GCC unroll 16
                    for (int r = 0; r < R; r++) {
                        const Vec<T> left = splat<T>(a[r * lda + k]), next = splat<T>(a[r * lda + k + 1]);
                        sum[r][2 * q] += left * right[0], sum[r][2 * q + 1] += left * right[1];
                        sum[r][2 * q] += next * right[2], sum[r][2 * q + 1] += next * right[3];
                    }
                }
        for (; k < stop; k++) {
            Vec<T> right[2 * Q];
#pragma GCC unroll 4
            for (int q = 0; q < Q; q++) {
                const typename W::Stored* const row = column[q] + k * W::ROW;
                if (R >= TALLEST / 2 && !TURNED)
                    for (int64_t next = AHEAD; next < AHEAD + W::ROW * int64_t(sizeof(*row)); next += 64) __builtin_prefetch(reinterpret_cast<const char*>(row) + next);
                W::read(row, right[2 * q], right[2 * q + 1]);
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const Vec<T> left = splat<T>(TURNED ? a[k * R + r] : a[r * lda + k]);
#pragma GCC unroll 8
                for (int q = 0; q < 2 * Q; q++) sum[r][q] += left * right[q];
            }
        }
        if constexpr (W::SCALED) {
            ELMAN_EACH(sum[r][q] = by_itself<T>(sum[r][q] * load(scale + q * L)));
            if (start) ELMAN_EACH(sum[r][q] += load(start + r * lds + q * L));
        }
        if (add) ELMAN_EACH(sum[r][q] += load(out + r * ldo + q * L));
        ELMAN_EACH(store<T>(out + r * ldo + q * L, sum[r][q]));
#undef ELMAN_EACH
        start = nullptr, add = true;
    } while (k < K);
}

// R rows, columns first … stop - 1 (first a multiple of PANEL).
template <class T, int R, class W>
static void strip(const T* a, int64_t lda, const typename W::Stored* w, int64_t K, const T* start, int64_t lds, T* out, int64_t ldo, int64_t first, int64_t stop,
                  const T* scale) {
    constexpr int P = PANEL<T>, Q = panels_at_once(R);
    auto panel = [&](int64_t n) { return w + n / P * ((K + W::STEPS - 1) / W::STEPS * W::STEPS) * W::ROW; };
    auto from = [](const T* row, int64_t n) { return row ? row + n : nullptr; };
    int64_t n = first;
    if (Q > 1)
        for (; stop - n > (Q - 1) * P; n += Q * P)
            tile<T, R, Q, false, W>(a, lda, panel(n), K, from(start, n), lds, out + n, ldo, stop - n, false, from(scale, n));
    for (; n < stop; n += P)
        tile<T, R, 1, false, W>(a, lda, panel(n), K, from(start, n), lds, out + n, ldo, stop - n, false, from(scale, n));
}

// a [rows, K], w packed, start [rows, N] or null for zero (lds 0: one row for all), out [rows, N], columns
// first … stop - 1. out may be start, and neither may overlap a. W, scale: as of a tile, whose columns all have one.
template <class T, class W = Whole<T>>
void product(const T* a, int64_t lda, const typename W::Stored* w, int64_t K, const T* start, int64_t lds, T* out, int64_t ldo, int64_t rows, int64_t first,
             int64_t stop, const T* scale = nullptr) {
    const int64_t tiles = (rows + W::TALL - 1) / W::TALL;
    for (int64_t i = 0, row = 0; i < tiles; i++) {
        const int64_t height = (rows - row) / (tiles - i) + ((rows - row) % (tiles - i) != 0);
        const T *ai = a + row * lda, *si = start ? start + row * lds : nullptr;
        T* oi = out + row * ldo;
        switch (height) {
#define ELMAN_STRIP(R) \
    case R:                    \
        if constexpr (R <= W::TALL) strip<T, R, W>(ai, lda, w, K, si, lds, oi, ldo, first, stop, scale); \
        break;
            ELMAN_HEIGHTS(ELMAN_STRIP)
#undef ELMAN_STRIP
        }
        row += height;
    }
}

// R rows times whole panels of a weight as it lies, its columns (TURNED) or its rows in order, `apart` elements from one to the next:
// a part of it is turned in registers, and read there. The chains are those of a tile.
template <class T, int R, bool TURNED>
ONCE void unpacked(const T* a, int64_t lda, const T* w, int64_t apart, int64_t K, const T* start, int64_t lds, T* out, int64_t ldo, int64_t columns) {
    constexpr int L = LANES<T>, A = AT_A_TIME<T>;
#define ELMAN_BOTH _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)
#define ELMAN_EACH _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)
    for (int64_t n = 0; n < columns; n += 2 * L) {
        const T* const here[2] = {TURNED ? w + n * apart : w + n, TURNED ? w + (n + L) * apart : w + n + L};
        Vec<T> total[R][2];
        int64_t k = 0;
        do {
            const int64_t begin = k, stop = K - k < DEEP ? K : k + DEEP;
            Vec<T> sum[R][2];
            ELMAN_EACH ELMAN_BOTH sum[r][h] = start && !begin ? load(start + r * lds + n + h * L) : Vec<T>{};
            for (; k + L <= stop; k += L)  // whole lines of memory, one half of the columns after the other
                ELMAN_BOTH for (int q = 0; q < L; q += A) {
                    Vec<T> rows[A];
                    if constexpr (TURNED) load_turned<T>(here[h] + k + q, apart, rows);
#pragma GCC unroll 16
                    for (int i = 0; i < A; i++) {
                        const Vec<T> row = TURNED ? rows[i] : load(here[h] + (k + q + i) * apart);
                        ELMAN_EACH sum[r][h] += splat<T>(a[r * lda + k + q + i]) * row;
                    }
                }
            for (; k < stop; k++)
                ELMAN_BOTH {
                    T column[L];
                    for (int i = 0; i < L; i++) column[i] = here[h][TURNED ? i * apart + k : k * apart + i];
                    ELMAN_EACH sum[r][h] += splat<T>(a[r * lda + k]) * load(column);
                }
            ELMAN_EACH ELMAN_BOTH total[r][h] = begin ? sum[r][h] + total[r][h] : sum[r][h];
        } while (k < K);
        ELMAN_EACH ELMAN_BOTH store<T>(out + r * ldo + n + h * L, total[r][h]);
    }
#undef ELMAN_BOTH
#undef ELMAN_EACH
}

constexpr int MOST_UNPACKED = TALLEST * 2 / 3;  // rows; with more of them sums and columns would not fit the registers

// How many of so many columns were made in this way: whole panels of them, of a few rows, and a weight that lies in order one way or the
// other.
template <class T>
static int64_t unpacked(const T* a, int64_t lda, const T* w, int64_t sk, int64_t sn, int64_t K, const T* start, int64_t lds, T* out, int64_t ldo,
                        int64_t rows, int64_t columns) {
    if (rows > MOST_UNPACKED || (sk != 1 && sn != 1)) return 0;
    columns = columns / PANEL<T> * PANEL<T>;
    const int64_t apart = sk == 1 ? sn : sk;
    switch (rows) {
#define ELMAN_UNPACKED(R) \
    case R:                           \
        if constexpr (R <= MOST_UNPACKED) \
            (sk == 1 ? unpacked<T, R, true> : unpacked<T, R, false>)(a, lda, w, apart, K, start, lds, out, ldo, columns); \
        break;
        ELMAN_HEIGHTS(ELMAN_UNPACKED)
#undef ELMAN_UNPACKED
    }
    return columns;
}

}  // namespace ELMAN_ISA
}  // namespace elman
