// The vector type: as many lanes as the instruction set of this translation unit has, for float and double.
//
// Written with the vector extension of GCC and Clang, so that one source serves SSE2, AVX2, AVX-512 and NEON. Every
// instruction set compiles it in a namespace of its own (ELMAN_ISA): nothing here may be shared between them by the linker,
// or code for one machine would run on another.
#pragma once

#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef ELMAN_ISA
#error "say which instruction set this file is compiled for: -DELMAN_ISA=plain, avx2 or avx512"
#endif

#if defined(__AVX512F__)
#define ELMAN_VECTOR_BYTES 64
#elif defined(__AVX__)
#define ELMAN_VECTOR_BYTES 32
#else
#define ELMAN_VECTOR_BYTES 16
#endif

#define INLINE static inline __attribute__((always_inline))
// What is called from many places and is not worth its copies: they were most of what a compiler had to do here.
#if defined(__clang__)
#define ONCE static __attribute__((noinline))
#else
#define ONCE static __attribute__((noinline, noclone))
#endif

namespace elman {
namespace ELMAN_ISA {

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(ELMAN_VECTOR_BYTES)));
    typedef float loose __attribute__((vector_size(ELMAN_VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t bits __attribute__((vector_size(ELMAN_VECTOR_BYTES)));
    typedef uint32_t unsigned_bits __attribute__((vector_size(ELMAN_VECTOR_BYTES)));
    typedef int32_t bit;
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(ELMAN_VECTOR_BYTES)));
    typedef double loose __attribute__((vector_size(ELMAN_VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t bits __attribute__((vector_size(ELMAN_VECTOR_BYTES)));
    typedef uint64_t unsigned_bits __attribute__((vector_size(ELMAN_VECTOR_BYTES)));
    typedef int64_t bit;
};

template <class T>
using Vec = typename VectorOf<T>::type;
// A vector of integers as wide as T: what a comparison gives (0 or -1 in each lane), and T's bit pattern.
template <class T>
using Bits = typename VectorOf<T>::bits;

template <class T>
constexpr int LANES = ELMAN_VECTOR_BYTES / int(sizeof(T));

template <int... I>
struct Lanes {};
template <int N, int... I>
struct Counted : Counted<N - 1, N - 1, I...> {};
template <int... I>
struct Counted<0, I...> {
    typedef Lanes<I...> type;
};

template <int N>
struct Number {
    static constexpr int value = N;
};

template <class T>
INLINE Vec<T> load(const T* p) {
    return *reinterpret_cast<const typename VectorOf<T>::loose*>(p);
}

template <class T>
INLINE void store(T* p, Vec<T> v) {
    *reinterpret_cast<typename VectorOf<T>::loose*>(p) = v;
}

// The first n lanes, 0 < n < LANES; the others are 0. Nothing behind them is touched.
template <class T>
INLINE Vec<T> load_part(const T* p, int n) {
    Vec<T> v = {};
    for (int i = 0; i < n; i++) reinterpret_cast<T*>(&v)[i] = p[i];
    return v;
}

template <class T>
INLINE void store_part(T* p, Vec<T> v, int n) {
    for (int i = 0; i < n; i++) p[i] = reinterpret_cast<const T*>(&v)[i];
}

template <class T>
INLINE Vec<T> splat(T x) {
    return x - Vec<T>{};  // x - 0 keeps a negative zero
}

// The same value. A product that goes through here is rounded before it is added to something: else it is the compiler's to
// say, at each place anew, whether the two are one operation.
template <class T>
INLINE Vec<T> by_itself(Vec<T> v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

template <class T>
INLINE Bits<T> bits_of(Vec<T> v) {
    return (Bits<T>)v;
}

template <class T>
INLINE Vec<T> from_bits(Bits<T> b) {
    return (Vec<T>)b;
}

// Lane by lane: where the mask is -1, a; where it is 0, b.
template <class T>
INLINE Vec<T> select(Bits<T> mask, Vec<T> a, Vec<T> b) {
    return mask ? a : b;
}

// --- turning a square of LANES x LANES elements --------------------------------------------------------------------------

// a and b, lane by lane: FROM says which lane of both goes to lane i, counting those of b behind those of a.
template <class T, class From, int... I>
INLINE Vec<T> mixed(Vec<T> a, Vec<T> b, Lanes<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, From::lane(I)...);
#else
    return __builtin_shuffle(a, b, Bits<T>{From::lane(I)...});
#endif
}

// Lane i of a with bit S of i clear, else lane i - S of b; and the OTHER half: lane i + S of a where it is clear, else b.
template <int L, int S, bool OTHER>
struct Exchanged {
    static constexpr int lane(int i) { return (OTHER ? (i & S ? L + i : i + S) : (i & S ? L + i - S : i)); }
};

// Of each block of 16 bytes, E elements, the first half of a's and the first half of b's, G at a time in turns; and the OTHER halves.
template <int L, int E, int G, bool OTHER>
struct Zipped {
    static constexpr int lane(int i) { return i / E * E + i % E / (2 * G) * G + i % G + (OTHER ? E / 2 : 0) + (i % E / G % 2 ? L : 0); }
};

template <class T, class One, class Other>
INLINE void both(Vec<T>& a, Vec<T>& b) {
    typedef typename Counted<LANES<T>>::type All;
    const Vec<T> x = mixed<T, One>(a, b, All{}), y = mixed<T, Other>(a, b, All{});
    a = x, b = y;
}

template <class T>
constexpr int IN_BLOCK = 16 / int(sizeof(T));

// Blocks of 16 bytes change places, of N vectors, those S elements apart and nearer.
template <class T, int N, int S>
INLINE void exchange(Vec<T>* rows) {
    if constexpr (S >= IN_BLOCK<T>) {
#pragma GCC unroll 16
        for (int i = 0; i < N; i++)
            if (!(i & S)) both<T, Exchanged<LANES<T>, S, false>, Exchanged<LANES<T>, S, true>>(rows[i], rows[i + S]);
        exchange<T, N, S / 2>(rows);
    }
}

// And within them: squares of as many elements as a block has.
template <class T, int N>
INLINE void turn_blocks(Vec<T>* rows) {
    constexpr int L = LANES<T>, E = IN_BLOCK<T>;
#pragma GCC unroll 8
    for (int i = 0; i < N; i += E) {
        Vec<T>* const v = rows + i;
        if constexpr (E == 2) {
            both<T, Zipped<L, 2, 1, false>, Zipped<L, 2, 1, true>>(v[0], v[1]);
        } else {
            both<T, Zipped<L, 4, 1, false>, Zipped<L, 4, 1, true>>(v[0], v[1]);
            both<T, Zipped<L, 4, 1, false>, Zipped<L, 4, 1, true>>(v[2], v[3]);
            both<T, Zipped<L, 4, 2, false>, Zipped<L, 4, 2, true>>(v[0], v[2]);
            both<T, Zipped<L, 4, 2, false>, Zipped<L, 4, 2, true>>(v[1], v[3]);
            const Vec<T> second = v[2];
            v[2] = v[1], v[1] = second;
        }
    }
}

// rows[i] becomes what was column i.
template <class T>
INLINE void transpose(Vec<T>* rows) {
    exchange<T, LANES<T>, LANES<T> / 2>(rows);
    turn_blocks<T, LANES<T>>(rows);
}

// Half a vector from each of two places.
template <class T>
INLINE Vec<T> load_halves(const T* left, const T* right) {
    auto as = [](const T* from) { return reinterpret_cast<const double*>(from); };
#if defined(__AVX512F__)
    return (Vec<T>)_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(as(left))), _mm256_loadu_pd(as(right)), 1);
#elif defined(__AVX__)
    return (Vec<T>)_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(as(left))), _mm_loadu_pd(as(right)), 1);
#else
    (void)as, (void)right;
    return load(left);
#endif
}

// How many columns are turned at once: half a square where vectors are wider than a block, for loading halves is half an exchange.
template <class T>
constexpr int AT_A_TIME = ELMAN_VECTOR_BYTES > 16 ? LANES<T> / 2 : LANES<T>;

// columns[i], of so many: element i of LANES lines that are `apart` elements apart.
template <class T>
INLINE void load_turned(const T* from, int64_t apart, Vec<T>* columns) {
    constexpr int N = AT_A_TIME<T>;
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) columns[i] = load_halves(from + i * apart, from + (i + LANES<T> - N) * apart);
    exchange<T, N, LANES<T> / 4>(columns);
    turn_blocks<T, N>(columns);
}

}  // namespace ELMAN_ISA
}  // namespace elman
