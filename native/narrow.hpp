// Weights in fewer bits, for whoever multiplies with them again and again (stream.hpp): with a row or two, a product takes
// as long as reading its weight does. They are widened in registers; what they are multiplied with, and the sums, are floats.
//
// bfloat16: the upper half of a float, rounded to the nearest. int8: w ≈ scale · q of each column, q in -127 … 127, where
// scale is the column's largest |w| / 127. Panels are as in products.hpp, [K, PANEL]; tiles are of few rows, which are what
// this is for, and take the compiler long enough.
#pragma once

#include "products.hpp"

namespace elman {
namespace ELMAN_ISA {

// A word holds the numbers of two columns that are LANES apart, so that widening takes no shuffle.
struct Halves {
    typedef uint32_t Stored;
    static constexpr int ROW = LANES<float>;
    static constexpr bool SCALED = false;
    static constexpr int TALL = 4, STEPS = 1;

    static void read(const uint32_t* row, Vec<float>& left, Vec<float>& right) {
        typedef VectorOf<float>::unsigned_bits Words;
        typedef uint32_t Loose __attribute__((vector_size(ELMAN_VECTOR_BYTES), aligned(4), may_alias));
        const Words words = (Words) * reinterpret_cast<const Loose*>(row);
        left = (Vec<float>)(words << 16), right = (Vec<float>)(words & 0xffff0000u);
    }
};

// A word holds the numbers of two columns, LANES apart, for k (even) and k + 1. Shifted to the top of a word, a number is
// 2²⁴ times itself, which the scale takes back: no second shift is needed to have its sign.
struct Bytes {
    typedef int8_t Stored;
    static constexpr int ROW = PANEL<float>;
    static constexpr bool SCALED = true;
    static constexpr int TALL = 4, STEPS = 2;

    static void read_two(const int8_t* row, Vec<float>* right) {
        typedef Bits<float> Words;
        typedef int32_t Loose __attribute__((vector_size(ELMAN_VECTOR_BYTES), aligned(4), may_alias));
        const Words words = (Words) * reinterpret_cast<const Loose*>(row), top = Words{} + int32_t(0xff000000);
        right[0] = __builtin_convertvector(words << 24, Vec<float>);
        right[1] = __builtin_convertvector(words << 16 & top, Vec<float>);
        right[2] = __builtin_convertvector(words << 8 & top, Vec<float>);
        right[3] = __builtin_convertvector(words & top, Vec<float>);
    }

    // The last k, if there is an odd number of them: a word's other half is empty.
    static void read(const int8_t* row, Vec<float>& left, Vec<float>& right) {
        Vec<float> all[4];
        read_two(row, all);
        left = all[0], right = all[1];
    }
};

static inline uint32_t upper_half(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    if (x != x) return bits >> 16 | 0x40;  // rounding could make an infinity of it
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// As `pack`, of which `to` has room for half.
static void pack_halves(const float* w, int64_t sk, int64_t sn, int64_t K, int64_t N, uint32_t* to) {
    constexpr int64_t L = LANES<float>, P = PANEL<float>;
    auto at = [&](int64_t k, int64_t n) { return n < N ? upper_half(w[k * sk + n * sn]) : 0; };
    for (int64_t n = 0; n < N; n += P)
        for (int64_t k = 0; k < K; k++)
            for (int64_t i = 0; i < L; i++) *to++ = at(k, n + i) | at(k, n + L + i) << 16;
}

// The scales of all columns, whole panels, each 2⁻²⁴ of what it is; then a byte for each of what `pack` writes, K made even.
static void pack_bytes(const float* w, int64_t sk, int64_t sn, int64_t K, int64_t N, float* to) {
    constexpr int64_t L = LANES<float>, P = PANEL<float>;
    const int64_t columns = (N + P - 1) / P * P, even = (K + 1) / 2 * 2;
    int8_t* q = reinterpret_cast<int8_t*>(to + columns);
    for (int64_t n = 0; n < columns; n++) {
        float most = 0;
        bool odd = false;  // no number at all
        for (int64_t k = 0; k < K && n < N; k++) {
            const float x = __builtin_fabsf(w[k * sk + n * sn]);
            odd |= !(x <= __FLT_MAX__);
            most = x > most ? x : most;
        }
        const float scale = most / 127;
        to[n] = odd ? __builtin_nanf("") : scale * 0x1p-24f;
        for (int64_t k = 0; k < even; k++) {
            const float x = !odd && n < N && k < K && scale > 0 ? w[k * sk + n * sn] / scale : 0;
            int8_t* panel = q + n / P * P * even + k / 2 * 2 * P;
            panel[4 * (n % L) + n % P / L + k % 2 * 2] = int8_t(__builtin_rintf(x < -127 ? -127 : x > 127 ? 127 : x));
        }
    }
}

}  // namespace ELMAN_ISA
}  // namespace elman
