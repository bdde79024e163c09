// The vector type: as many lanes as the instruction set of this translation unit has, for float and double.
//
// Written with the vector extension of GCC and Clang, so that one source serves SSE2, AVX2, AVX-512 and NEON. Every
// instruction set compiles it in a namespace of its own (ELMAN_ISA): nothing here may be shared between them by the linker,
// or code for one machine would run on another.
#pragma once

#include <cstdint>

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

// Lane i of a with bit S of i clear, else lane i - S of b; and the other half: lane i + S of a where it is clear, else b.
template <class T, int S, int... I>
INLINE void exchange(Vec<T>& a, Vec<T>& b, Lanes<I...>) {
    constexpr int L = LANES<T>;
#if defined(__clang__)
    const Vec<T> x = __builtin_shufflevector(a, b, (I & S ? L + I - S : I)...);
    const Vec<T> y = __builtin_shufflevector(a, b, (I & S ? L + I : I + S)...);
#else
    const Vec<T> x = __builtin_shuffle(a, b, Bits<T>{(I & S ? L + I - S : I)...});
    const Vec<T> y = __builtin_shuffle(a, b, Bits<T>{(I & S ? L + I : I + S)...});
#endif
    a = x, b = y;
}

template <class T, int S>
INLINE void exchange_all(Vec<T>* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES<T>; i++)
        if (!(i & S)) exchange<T, S>(rows[i], rows[i + S], typename Counted<LANES<T>>::type{});
    if constexpr (S > 1) exchange_all<T, S / 2>(rows);
}

// rows[i] becomes what was column i.
template <class T>
INLINE void transpose(Vec<T>* rows) {
    if constexpr (LANES<T> > 1) exchange_all<T, LANES<T> / 2>(rows);
}

}  // namespace ELMAN_ISA
}  // namespace elman
