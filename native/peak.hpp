// How many multiply-adds a second a core can do at all, in registers: what products are measured against.
#pragma once

#include "products.hpp"

namespace elman {
namespace ELMAN_ISA {

// As many chains as a product has sums, `rounds` links each. Gives the operations that were, a multiply-add being two.
template <class T>
static int64_t multiply_adds(int64_t rounds) {
    Vec<T> sum[SUMS];
    for (int i = 0; i < SUMS; i++) sum[i] = splat<T>(T(i));
    T numbers[2] = {T(0.5), T(1)};
    asm volatile("" : : "r"(numbers) : "memory");  // numbers that the compiler does not know
    const Vec<T> times = splat<T>(numbers[0]), plus = splat<T>(numbers[1]);
    for (int64_t n = 0; n < rounds; n++)
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++) sum[i] = sum[i] * times + plus;
    asm volatile("" : : "r"(sum) : "memory");  // which are read
    return 2 * rounds * SUMS * LANES<T>;
}

}  // namespace ELMAN_ISA
}  // namespace elman
