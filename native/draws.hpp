// Random numbers that are a function of where they stand: Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw 2011),
// keyed by a seed. Every number can be drawn again alone, by any thread, in any order. Uniform numbers and what is left out
// have the same bits for every instruction set; normal ones go through functions, which differ in the last place.
#pragma once

#include "functions.hpp"
#include "program.hpp"
#include "team.hpp"

namespace elman {
namespace ELMAN_ISA {

typedef VectorOf<float>::unsigned_bits Words;
constexpr int64_t WORDS = LANES<float>;
constexpr int64_t HALF = 16;  // counters of a chunk: elements whose first words stand together, the second ones behind them
constexpr int64_t BLOCK = 4096;  // numbers of a tensor that share the second word of their counters, as those of a step do
template <class T>
constexpr T TURN = T(6.283185307179586476925);
constexpr int64_t CHUNKS = 2, COUNTED = CHUNKS * HALF / WORDS;  // that are mixed at once: a chain of them waits for itself

// How many of the threads: fewer numbers than 2^14 are no work.
INLINE int worth(int64_t numbers, int threads) {
    const int64_t shares = numbers >> 14;
    return shares < 1 ? 1 : shares < threads ? int(shares) : threads;
}

struct Key {
    uint32_t k[3];
    explicit Key(uint64_t seed) : k{uint32_t(seed), uint32_t(seed >> 32), 0x1BD11BDA ^ uint32_t(seed) ^ uint32_t(seed >> 32)} {}
};

template <int BITS>
INLINE void round_of(Words* x, Words* y) {
#pragma GCC unroll 16
    for (int i = 0; i < COUNTED; i++) {
        x[i] += y[i];
        y[i] = (y[i] << BITS) | (y[i] >> (32 - BITS));
        y[i] ^= x[i];
    }
}

template <int I>
INLINE void inject(const Key& key, Words* x, Words* y) {
#pragma GCC unroll 16
    for (int i = 0; i < COUNTED; i++) {
        x[i] += key.k[I % 3];
        y[i] += key.k[(I + 1) % 3] + uint32_t(I);
    }
}

// Two random words for every pair of counters.
INLINE void mix(const Key& key, Words* x, Words* y) {
    inject<0>(key, x, y);
    round_of<13>(x, y), round_of<15>(x, y), round_of<26>(x, y), round_of<6>(x, y);
    inject<1>(key, x, y);
    round_of<17>(x, y), round_of<29>(x, y), round_of<16>(x, y), round_of<24>(x, y);
    inject<2>(key, x, y);
    round_of<13>(x, y), round_of<15>(x, y), round_of<26>(x, y), round_of<6>(x, y);
    inject<3>(key, x, y);
    round_of<17>(x, y), round_of<29>(x, y), round_of<16>(x, y), round_of<24>(x, y);
    inject<4>(key, x, y);
    round_of<13>(x, y), round_of<15>(x, y), round_of<26>(x, y), round_of<6>(x, y);
    inject<5>(key, x, y);
}

// The words of CHUNKS chunks of a step from number `chunk`: each has 16 first words, then 16 second ones.
INLINE void words_of(const Key& key, uint32_t step, uint32_t chunk, uint32_t* to) {
    static const uint32_t counted[HALF] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    constexpr int64_t EACH = HALF / WORDS;
    Words x[COUNTED], y[COUNTED];
#pragma GCC unroll 16
    for (int64_t i = 0; i < COUNTED; i++) {
        __builtin_memcpy(&x[i], counted + i % EACH * WORDS, sizeof(Words));
        x[i] += uint32_t((chunk + i / EACH) * HALF), y[i] = Words{} + step;
    }
    mix(key, x, y);
#pragma GCC unroll 16
    for (int64_t i = 0; i < COUNTED; i++) {
        __builtin_memcpy(to + i / EACH * 2 * HALF + i % EACH * WORDS, &x[i], sizeof(Words));
        __builtin_memcpy(to + i / EACH * 2 * HALF + HALF + i % EACH * WORDS, &y[i], sizeof(Words));
    }
}

// The numbers of a step, in [0, 1): 24 bits for a float, 53 for a double.
INLINE void uniform_step(const Key& key, uint32_t step, int64_t count, float* to) {
    constexpr int64_t MADE = CHUNKS * 2 * HALF;
    alignas(64) uint32_t words[MADE];
    alignas(64) float made[MADE];
    for (int64_t at = 0, chunk = 0; at < count; at += MADE, chunk += CHUNKS) {
        words_of(key, step, uint32_t(chunk), words);
        float* numbers = count - at < MADE ? made : to + at;
        for (int64_t i = 0; i < MADE; i++) numbers[i] = float(int32_t(words[i] >> 8)) * 0x1p-24f;
        if (numbers == made) __builtin_memcpy(to + at, made, std::size_t(count - at) * sizeof(float));
    }
}

INLINE void uniform_step(const Key& key, uint32_t step, int64_t count, double* to) {
    constexpr int64_t MADE = CHUNKS * HALF;
    alignas(64) uint32_t words[2 * MADE];
    for (int64_t at = 0, chunk = 0; at < count; at += MADE, chunk += CHUNKS) {
        words_of(key, step, uint32_t(chunk), words);
        for (int64_t i = 0; i < MADE && at + i < count; i++) {
            const uint32_t* word = words + i / HALF * 2 * HALF + i % HALF;
            to[at + i] = double(int64_t((uint64_t(word[0]) << 32 | word[HALF]) >> 11)) * 0x1p-53;
        }
    }
}

// ---- normal numbers: Box and Muller (1958), sqrt(-2 ln a) cos and sin of 2 pi b -----------------------------------------

// cos and sin of 2 pi b, b = quarter / 4 + part / (2 pi), |part| <= pi / 4: sums of Taylor, which end below a rounding there.
template <class T>
INLINE void on_circle(Vec<T> part, Bits<T> quarter, Vec<T>& cos, Vec<T>& sin) {
    const Vec<T> z = part * part;
    Vec<T> c, s;
    if constexpr (sizeof(T) == 4) {
        c = polynomial<T>(z, 1.f, -1 / 2.f, 1 / 24.f, -1 / 720.f, 1 / 40320.f);
        s = part * polynomial<T>(z, 1.f, -1 / 6.f, 1 / 120.f, -1 / 5040.f, 1 / 362880.f);
    } else {
        c = polynomial<T>(z, 1., -1 / 2., 1 / 24., -1 / 720., 1 / 40320., -1 / 3628800., 1 / 479001600., -1 / 87178291200., 1 / 20922789888000.);
        s = part * polynomial<T>(z, 1., -1 / 6., 1 / 120., -1 / 5040., 1 / 362880., -1 / 39916800., 1 / 6227020800., -1 / 1307674368000.,
                                 1 / 355687428096000.);
    }
    const Bits<T> odd = -(quarter & 1), top = bits_of<T>(splat<T>(T(-0.0)));
    const Bits<T> left = -((quarter + 1) >> 1 & 1) & top, below = -(quarter >> 1 & 1) & top;
    cos = from_bits<T>(bits_of<T>(select<T>(odd, s, c)) ^ left);
    sin = from_bits<T>(bits_of<T>(select<T>(odd, c, s)) ^ below);
}

// Two numbers that do not depend on each other. a: in (0, 1].
template <class T>
INLINE void two_normal(Vec<T> a, Vec<T> part, Bits<T> quarter, T* one, T* other) {
    const Split<T> a_ = split<T>(a);
    const Vec<T> length = sqrt_<T>(T(-2) * log_sum<T>(a_.k, a_.m - T(1), splat<T>(0)));
    Vec<T> cos, sin;
    on_circle<T>(part, quarter, cos, sin);
    store<T>(one, length * cos);
    store<T>(other, length * sin);
}

// Of each counter the first word is a, with 31 bits, the second b, with 24.
INLINE void normal_step(const Key& key, uint32_t step, int64_t count, float* to) {
    constexpr int64_t MADE = CHUNKS * 2 * HALF;
    alignas(64) uint32_t words[MADE];
    alignas(64) float made[MADE];
    for (int64_t at = 0, chunk = 0; at < count; at += MADE, chunk += CHUNKS) {
        words_of(key, step, uint32_t(chunk), words);
        float* numbers = count - at < MADE ? made : to + at;
        for (int64_t c = 0; c < MADE; c += 2 * HALF)
            for (int64_t i = c; i < c + HALF; i += WORDS) {
                Words first, second;
                __builtin_memcpy(&first, words + i, sizeof(Words));
                __builtin_memcpy(&second, words + i + HALF, sizeof(Words));
                const Bits<float> turn = (Bits<float>)(second >> 8), quarter = (turn + (1 << 21)) >> 22;
                const Vec<float> a = __builtin_convertvector((Bits<float>)(first >> 1), Vec<float>) * 0x1p-31f + 0x1p-32f;
                const Vec<float> part = __builtin_convertvector(turn - (quarter << 22), Vec<float>) * (TURN<float> * 0x1p-24f);
                two_normal<float>(a, part, quarter, numbers + i, numbers + i + HALF);
            }
        if (numbers == made) __builtin_memcpy(to + at, made, std::size_t(count - at) * sizeof(float));
    }
}

// a of one chunk, b of the next, with 53 bits each.
INLINE void normal_step(const Key& key, uint32_t step, int64_t count, double* to) {
    constexpr int64_t MADE = CHUNKS * HALF;
    alignas(64) uint32_t words[2 * MADE];
    alignas(64) double made[MADE], a[HALF], part[HALF];
    alignas(64) int64_t quarter[HALF];
    for (int64_t at = 0, chunk = 0; at < count; at += MADE, chunk += CHUNKS) {
        words_of(key, step, uint32_t(chunk), words);
        for (int64_t i = 0; i < HALF; i++) {
            const uint32_t* word = words + i;
            const int64_t turn = int64_t((uint64_t(word[2 * HALF]) << 32 | word[3 * HALF]) >> 11);
            quarter[i] = (turn + (int64_t(1) << 50)) >> 51;
            part[i] = double(turn - (quarter[i] << 51)) * (TURN<double> * 0x1p-53);
            a[i] = double(int64_t((uint64_t(word[0]) << 32 | word[HALF]) >> 11)) * 0x1p-53 + 0x1p-54;
        }
        double* numbers = count - at < MADE ? made : to + at;
        for (int64_t i = 0; i < HALF; i += LANES<double>) {
            Bits<double> quarters;
            __builtin_memcpy(&quarters, quarter + i, sizeof quarters);
            two_normal<double>(load<double>(a + i), load<double>(part + i), quarters, numbers + i, numbers + i + HALF);
        }
        if (numbers == made) __builtin_memcpy(to + at, made, std::size_t(count - at) * sizeof(double));
    }
}

// ---- what is left out --------------------------------------------------------------------------------------------------

// to = x m / (1 - p), m = 1 where a number's word is below 1 - p of all words, else 0.
template <class T>
INLINE void drop_block(const Key& key, uint32_t block, int64_t count, const T* x, T* to, uint32_t last, T scale) {
    constexpr int64_t MADE = CHUNKS * 2 * HALF;
    alignas(64) uint32_t words[MADE];
    for (int64_t at = 0, chunk = 0; at < count; at += MADE, chunk += CHUNKS) {
        words_of(key, block, uint32_t(chunk), words);
        if (count - at >= MADE)
            for (int64_t i = 0; i < MADE; i++) to[at + i] = x[at + i] * (words[i] <= last ? scale : T(0));
        else
            for (int64_t i = 0; at + i < count; i++) to[at + i] = x[at + i] * (words[i] <= last ? scale : T(0));
    }
}

// ---- shared between threads --------------------------------------------------------------------------------------------

template <class T, void (*STEP)(const Key&, uint32_t, int64_t, T*)>
static void drawn(const Drawing& all, int threads) {
    auto work = [](void* argument, int thread, int of) {
        const Drawing& d = *static_cast<const Drawing*>(argument);
        const Key key(d.seed);
        for (int64_t s = d.steps * thread / of; s < d.steps * (thread + 1) / of; s++)
            STEP(key, uint32_t(d.first + s), d.count, reinterpret_cast<T*>(d.to) + s * d.count);
    };
    run_team(worth(all.steps * all.count, threads), work, const_cast<Drawing*>(&all));
}

template <class T>
static void dropped(const Dropping& all, int threads) {
    auto work = [](void* argument, int thread, int of) {
        const Dropping& d = *static_cast<const Dropping*>(argument);
        const Key key(d.seed);
        const double kept = 1 - d.p, words = kept * 0x1p32;
        const T scale = kept > 0 ? T(1 / kept) : T(0);
        const uint32_t last = words >= 0x1p32 ? UINT32_MAX : words >= 1 ? uint32_t(words) - 1 : 0;
        const int64_t blocks = (d.count + BLOCK - 1) / BLOCK;
        for (int64_t b = blocks * thread / of; b < blocks * (thread + 1) / of; b++) {
            const int64_t at = b * BLOCK, left = d.count - at;
            drop_block<T>(key, uint32_t(b), left < BLOCK ? left : BLOCK, reinterpret_cast<const T*>(d.from) + at, reinterpret_cast<T*>(d.to) + at, last, scale);
        }
    };
    run_team(worth(all.count, threads), work, const_cast<Dropping*>(&all));
}

}  // namespace ELMAN_ISA
}  // namespace elman
