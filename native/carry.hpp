// What learning forward in time carries along (elman/online): M = J M + D in place, for many J of few units, where D is other
// than zero in listed places.
//
// Columns of M are packed a few panels at a time, and written where they came from: memory is gone through once, and there
// is no second M. Threads share out rows of the batch or, where there are fewer rows than threads, columns: never a sum.
#pragma once

#include "products.hpp"
#include "program.hpp"
#include "team.hpp"

namespace elman {
namespace ELMAN_ISA {

constexpr int64_t NEAR = 16 << 10;  // bytes of packed columns, which stay in the nearest cache

template <class T>
INLINE int64_t packed_columns(int64_t units) {
    const int64_t panels = NEAR / (units * PANEL<T> * int64_t(sizeof(T)));
    return (panels < 1 ? 1 : panels) * PANEL<T>;
}

template <class T>
static int64_t carry_bytes(int64_t units, int threads) {
    return threads * units * packed_columns<T>(units) * int64_t(sizeof(T)) + 64 * threads;
}

template <class T>
struct Carrying {
    const Carried& all;
    char* space;
    bool by_rows;

    void move(int64_t row, int64_t first, int64_t stop, T* packed) const {
        const int64_t u = all.units, q = all.columns, wide = packed_columns<T>(u);
        for (int64_t g = row * all.blocks; g < (row + 1) * all.blocks; g++) {
            const T* J = reinterpret_cast<const T*>(all.jacobian) + g * u * u;
            T* M = reinterpret_cast<T*>(all.influence) + g * u * q;
            for (int64_t n = first; n < stop; n += wide) {
                const int64_t width = stop - n < wide ? stop - n : wide;
                pack<T>(M + n, q, 1, u, width, packed);
                product<T>(J, u, packed, u, nullptr, 0, M + n, q, u, 0, width);
            }
        }
    }

    void add(int64_t row) const {
        T* M = reinterpret_cast<T*>(all.influence) + row * all.blocks * all.units * all.columns;
        const T* D = reinterpret_cast<const T*>(all.added) + row * all.added_row;
        for (int64_t i = 0; i < all.count; i++) M[all.at[i]] += D[all.of ? all.of[i] : i];
    }

    void work(int thread, int of) const {
        char* mine = space + thread * carry_bytes<T>(all.units, 1);
        T* packed = reinterpret_cast<T*>(mine + (64 - int64_t(reinterpret_cast<uintptr_t>(mine)) % 64) % 64);
        if (by_rows) {
            for (int64_t row = all.rows * thread / of; row < all.rows * (thread + 1) / of; row++) move(row, 0, all.columns, packed), add(row);
            return;
        }
        constexpr int64_t P = PANEL<T>;
        const int64_t stop = thread + 1 == of ? all.columns : all.columns / P * (thread + 1) / of * P;
        for (int64_t row = 0; row < all.rows; row++) move(row, all.columns / P * thread / of * P, stop, packed);
    }
};

template <class T>
static void carry(const Carried& all, int threads, char* space) {
    const int64_t worth = all.rows * all.blocks * all.units * all.units * all.columns >> 18;  // as of matrices_team
    threads = worth < 1 ? 1 : worth < threads ? int(worth) : threads;
    Carrying<T> work = {all, space, threads <= all.rows};
    run_team(threads, [](void* argument, int thread, int of) { static_cast<const Carrying<T>*>(argument)->work(thread, of); }, &work);
    if (!work.by_rows)
        for (int64_t row = 0; row < all.rows; row++) work.add(row);
}

}  // namespace ELMAN_ISA
}  // namespace elman
