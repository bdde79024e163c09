// Uniform random numbers that are a function of where they stand: Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw
// 2011), keyed by a seed. Every number can be drawn again alone, by any thread, in any order; the bits are the same for
// every instruction set.
#pragma once

#include "program.hpp"
#include "team.hpp"
#include "vector.hpp"

namespace elman {
namespace ELMAN_ISA {

typedef VectorOf<float>::unsigned_bits Words;
constexpr int64_t WORDS = LANES<float>;
constexpr int64_t HALF = 16;  // counters of a chunk: elements whose first words stand together, the second ones behind them
constexpr int64_t CHUNKS = 2, COUNTED = CHUNKS * HALF / WORDS;  // that are mixed at once: a chain of them waits for itself

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

template <class T>
static void uniform(const Drawing& all, int threads) {
    auto work = [](void* argument, int thread, int of) {
        const Drawing& d = *static_cast<const Drawing*>(argument);
        const Key key(d.seed);
        for (int64_t s = d.steps * thread / of; s < d.steps * (thread + 1) / of; s++)
            uniform_step(key, uint32_t(d.first + s), d.count, reinterpret_cast<T*>(d.to) + s * d.count);
    };
    const int64_t worth = all.steps * all.count >> 14;  // fewer numbers than that are no work
    run_team(worth < 1 ? 1 : worth < threads ? int(worth) : threads, work, const_cast<Drawing*>(&all));
}

}  // namespace ELMAN_ISA
}  // namespace elman
