// Operations element by element: the same function on every element of a row, whatever the strides.
//
// Operands: result, then arguments; `size` is the shape that all of them are seen in.
#pragma once

#include "frame.hpp"
#include "functions.hpp"

namespace elman {
namespace ELMAN_ISA {

// Elements that are handled at once where strides are not 1.
constexpr int CHUNK = 256;

template <class T>
ONCE T* gather_run(const T* p, int64_t stride, int64_t n, T* temporary) {
    if (stride == 1) return const_cast<T*>(p);
    if (stride == 0)
        for (int64_t i = 0; i < n; i++) temporary[i] = *p;
    else
        for (int64_t i = 0; i < n; i++) temporary[i] = p[i * stride];
    return temporary;
}

// run(out, a, b, c, n, rows, apart) is what is done with contiguous pieces: `rows` of them, n elements each, those of out, a, b
// and c apart[0 … 3] elements apart (not read where there is one). It is a function, so that what follows is compiled once
// for all of the same types.

// Where operands lie in any other way: pieces of them are put in order, and the result back.
template <class O, class A, class B, class C, int arity, class Run>
ONCE void each_piece(const Op& op, const Frame& f, Run run) {
    const Operand *po = &op.operand[0], *pa = &op.operand[1], *pb = &op.operand[2], *pc = &op.operand[3];
    constexpr int last = DIMENSIONS - 1;
    const int64_t n = op.size[last];
    O* o = f.at<O>(*po);
    A* a = arity > 0 ? f.at<A>(*pa) : nullptr;
    B* b = arity > 1 ? f.at<B>(*pb) : nullptr;
    C* c = arity > 2 ? f.at<C>(*pc) : nullptr;
    const int64_t ro = f.row(*po), ra = arity > 0 ? f.row(*pa) : n, rb = arity > 1 ? f.row(*pb) : n,
                  rc = arity > 2 ? f.row(*pc) : n;
    O to[CHUNK];
    A ta[CHUNK];
    B tb[CHUNK];
    C tc[CHUNK];
    if (op.size[0] * op.size[1] * op.size[2] * n == 1) {  // one number for each row
        for (int64_t r = 0; r < f.rows; r += CHUNK) {
            const int64_t m = f.rows - r < CHUNK ? f.rows - r : CHUNK;
            O* target = ro == 1 ? o + r : to;
            run(target, arity > 0 ? gather_run(a + r * ra, ra, m, ta) : nullptr,
                arity > 1 ? gather_run(b + r * rb, rb, m, tb) : nullptr,
                arity > 2 ? gather_run(c + r * rc, rc, m, tc) : nullptr, m, 1, nullptr);
            if (target == to)
                for (int64_t i = 0; i < m; i++) o[(r + i) * ro] = to[i];
        }
        return;
    }
    const int64_t so = po->stride[last], sa = pa->stride[last], sb = pb->stride[last], sc = pc->stride[last];
    for (int64_t r = 0; r < f.rows; r++)
        for (int64_t i = 0; i < op.size[0]; i++)
            for (int64_t j = 0; j < op.size[1]; j++)
                for (int64_t k = 0; k < op.size[2]; k++)
                    for (int64_t l = 0; l < n; l += CHUNK) {
                        const int64_t m = n - l < CHUNK ? n - l : CHUNK;
                        auto lies = [&](const Operand* p) { return i * p->stride[0] + j * p->stride[1] + k * p->stride[2] + l * p->stride[last]; };
                        O* out = o + r * ro + lies(po);
                        O* target = so == 1 ? out : to;
                        run(target, arity > 0 ? gather_run(a + r * ra + lies(pa), sa, m, ta) : nullptr,
                            arity > 1 ? gather_run(b + r * rb + lies(pb), sb, m, tb) : nullptr,
                            arity > 2 ? gather_run(c + r * rc + lies(pc), sc, m, tc) : nullptr, m, 1, nullptr);
                        if (target == to)
                            for (int64_t q = 0; q < m; q++) out[q * so] = to[q];
                    }
}

// Calls `run` on contiguous pieces that cover all rows of the block. A, B, C: types of the arguments, as many as `arity` says.
template <class O, class A, class B, class C, int arity, class Run>
INLINE void each_run(const Op& op, const Frame& f, Run run) {
    const Operand *po = &op.operand[0], *pa = &op.operand[1], *pb = &op.operand[2], *pc = &op.operand[3];
    constexpr int last = DIMENSIONS - 1;
    const int64_t n = op.size[last];
    const bool line = op.size[0] * op.size[1] * op.size[2] == 1;
    const bool dense = po->stride[last] == 1 && (arity < 1 || pa->stride[last] == 1) &&
                       (arity < 2 || pb->stride[last] == 1) && (arity < 3 || pc->stride[last] == 1);
    if (!line || (!dense && n != 1)) return each_piece<O, A, B, C, arity, Run>(op, f, run);
    O* o = f.at<O>(*po);
    A* a = arity > 0 ? f.at<A>(*pa) : nullptr;
    B* b = arity > 1 ? f.at<B>(*pb) : nullptr;
    C* c = arity > 2 ? f.at<C>(*pc) : nullptr;
    const int64_t apart[4] = {f.row(*po), arity > 0 ? f.row(*pa) : n, arity > 1 ? f.row(*pb) : n, arity > 2 ? f.row(*pc) : n};
    if (f.parts == 1 || !op.split) {
        if (apart[0] == n && apart[1] == n && apart[2] == n && apart[3] == n) return run(o, a, b, c, n * f.rows, 1, nullptr);
        if (n == 1 && f.rows > 1) return each_piece<O, A, B, C, arity, Run>(op, f, run);
        return run(o, a, b, c, n, f.rows, apart);
    }
    const int64_t first = f.share(n, f.part), count = f.share(n, f.part + 1) - first;
    if (count > 0)
        run(o + first, arity > 0 ? a + first : nullptr, arity > 1 ? b + first : nullptr, arity > 2 ? c + first : nullptr, count, f.rows, apart);
}

// --- functions that are one call of the C library per lane ------------------------------------------------------------------

INLINE float fmod_of(float a, float b) { return __builtin_fmodf(a, b); }
INLINE double fmod_of(double a, double b) { return __builtin_fmod(a, b); }
INLINE float atan2_of(float a, float b) { return __builtin_atan2f(a, b); }
INLINE double atan2_of(double a, double b) { return __builtin_atan2(a, b); }

template <class T>
INLINE Vec<T> fmod_(Vec<T> a, Vec<T> b) {
    Vec<T> found;
    for (int i = 0; i < LANES<T>; i++) found[i] = fmod_of(a[i], b[i]);
    return found;
}

// As torch.floor_divide: out of the exact rest. a / b would be rounded, and 0.5 / 0.1 to 5.
template <class T>
INLINE T floordiv_of(T a, T b) {
    if (b == 0) return a / b;
    const T rest = fmod_of(a, b);
    T found = (a - rest) / b;
    if (rest != 0 && (b < 0) != (rest < 0)) found -= 1;
    if (found == 0) return __builtin_copysign(T(0), a / b);
    const T below = __builtin_floor(found);
    return found - below > T(0.5) ? below + 1 : below;
}

template <class T>
INLINE Vec<T> floordiv_(Vec<T> a, Vec<T> b) {
    Vec<T> found;
    for (int i = 0; i < LANES<T>; i++) found[i] = floordiv_of<T>(a[i], b[i]);
    return found;
}

// As torch.remainder: the sign of the divisor.
template <class T>
INLINE Vec<T> remainder_(Vec<T> a, Vec<T> b) {
    Vec<T> found;
    for (int i = 0; i < LANES<T>; i++) {
        const T rest = fmod_of(a[i], b[i]);
        found[i] = rest != 0 && (rest < 0) != (b[i] < 0) ? rest + b[i] : rest;
    }
    return found;
}

template <class T>
INLINE Vec<T> atan2_(Vec<T> a, Vec<T> b) {
    Vec<T> found;
    for (int i = 0; i < LANES<T>; i++) found[i] = atan2_of(a[i], b[i]);
    return found;
}

// --- real numbers, a vector at a time -----------------------------------------------------------------------------------

// m elements, 0 < m < LANES, and zeros; and back.
template <class T>
ONCE void copy_part(T* to, const T* from, int m) {
    for (int i = 0; i < LANES<T>; i++) to[i] = i < m ? from[i] : T(0);
}

template <class T>
ONCE void copy_back(T* to, const T* from, int m) {
    for (int i = 0; i < m; i++) to[i] = from[i];
}

// What is left of a row when whole vectors are done goes through the same code: F is there once.
template <class T, int arity, class F>
ONCE void vectors(T* o, const T* a, const T* b, const T* c, int64_t n, int64_t rows, const int64_t* apart) {
    constexpr int L = LANES<T>;
    for (int64_t r = 0; r < rows; r++) {
        if (r > 0) {
            o += apart[0], a += apart[1];
            if (arity > 1) b += apart[2];
            if (arity > 2) c += apart[3];
        }
        int64_t i = 0;
        for (; i + L <= n; i += L) {
            if constexpr (arity == 1) store<T>(o + i, F::template f<T>(load(a + i)));
            if constexpr (arity == 2) store<T>(o + i, F::template f<T>(load(a + i), load(b + i)));
            if constexpr (arity == 3) store<T>(o + i, F::template f<T>(load(a + i), load(b + i), load(c + i)));
        }
        if (i == n) continue;
        const int m = int(n - i);
        T to[L], ta[L], tb[L], tc[L];
        copy_part(ta, a + i, m);
        if (arity > 1) copy_part(tb, b + i, m);
        if (arity > 2) copy_part(tc, c + i, m);
        vectors<T, arity, F>(to, ta, tb, tc, L, 1, nullptr);
        copy_back(o + i, to, m);
    }
}

template <class T, class F>
INLINE void unary(const Op& op, const Frame& frame) {
    each_run<T, T, T, T, 1>(op, frame, vectors<T, 1, F>);
}

template <class T, class F>
INLINE void binary(const Op& op, const Frame& frame) {
    each_run<T, T, T, T, 2>(op, frame, vectors<T, 2, F>);
}

template <class T, class F>
INLINE void ternary(const Op& op, const Frame& frame) {
    each_run<T, T, T, T, 3>(op, frame, vectors<T, 3, F>);
}

#define ELMAN_FUNCTION(name, parameters, expression)           \
    struct name##_lanes {                                         \
        template <class T>                                     \
        INLINE Vec<T> f parameters { return expression; }      \
    };
#define ELMAN_ONE(name, expression) ELMAN_FUNCTION(name, (Vec<T> a), expression)
#define ELMAN_TWO(name, expression) ELMAN_FUNCTION(name, (Vec<T> a, Vec<T> b), expression)
#define ELMAN_THREE(name, expression) ELMAN_FUNCTION(name, (Vec<T> a, Vec<T> b, Vec<T> c), expression)
ELMAN_ONE(neg, -a)
ELMAN_ONE(abs, abs_<T>(a))
ELMAN_ONE(sign, sign_<T>(a))
ELMAN_ONE(exp, exp_<T>(a))
ELMAN_ONE(expm1, expm1_<T>(a))
ELMAN_ONE(log, log_<T>(a))
ELMAN_ONE(log1p, log1p_<T>(a))
ELMAN_ONE(tanh, tanh_<T>(a))
ELMAN_ONE(sigmoid, sigmoid_<T>(a))
ELMAN_ONE(sqrt, sqrt_<T>(a))
ELMAN_ONE(rsqrt, rsqrt_<T>(a))
ELMAN_ONE(reciprocal, T(1) / a)
ELMAN_ONE(relu, relu_<T>(a))
ELMAN_ONE(round, round_even_<T>(a))
ELMAN_ONE(floor, floor_<T>(a))
ELMAN_ONE(ceil, ceil_<T>(a))
ELMAN_ONE(trunc, trunc_<T>(a))
ELMAN_ONE(erf, erf_<T>(a))
ELMAN_ONE(sin, sin_<T>(a))
ELMAN_ONE(cos, cos_<T>(a))
ELMAN_ONE(atan, atan_<T>(a))
ELMAN_ONE(square, a * a)

ELMAN_TWO(add, a + b)
ELMAN_TWO(sub, a - b)
ELMAN_TWO(mul, a* b)
ELMAN_TWO(div, a / b)
ELMAN_TWO(maximum, max_<T>(a, b))
ELMAN_TWO(minimum, min_<T>(a, b))
ELMAN_TWO(pow, pow_<T>(a, b))
ELMAN_TWO(fmod, fmod_<T>(a, b))
ELMAN_TWO(remainder, remainder_<T>(a, b))
ELMAN_TWO(floordiv, floordiv_<T>(a, b))
ELMAN_TWO(atan2, atan2_<T>(a, b))
ELMAN_TWO(tanh_backward, a * (T(1) - b * b))
ELMAN_TWO(sigmoid_backward, a * (T(1) - b) * b)

ELMAN_THREE(fma, a* b + c)
ELMAN_THREE(fnma, c - a * b)
ELMAN_THREE(fms, a* b - c)
// As torch: from the nearer end.
ELMAN_THREE(lerp, select<T>((c < T(0.5)) & (c > T(-0.5)), a + c * (b - a), b - (b - a) * (T(1) - c)))
ELMAN_THREE(threshold_backward, select<T>(b <= c, Vec<T>{}, a))
ELMAN_THREE(clamp, (min_<T>(max_<T>(a, b), c)))

// --- other types: one element after the other, which compilers turn into vectors ------------------------------------------

template <class O, class A, class F>
ONCE void scalars1(O* o, const A* a, const A*, const A*, int64_t n, int64_t rows, const int64_t* apart) {
    for (int64_t r = 0; r < rows; r++) {
        if (r > 0) o += apart[0], a += apart[1];
        for (int64_t i = 0; i < n; i++) o[i] = F::f(a[i]);
    }
}

template <class O, class A, class F>
ONCE void scalars2(O* o, const A* a, const A* b, const A*, int64_t n, int64_t rows, const int64_t* apart) {
    for (int64_t r = 0; r < rows; r++) {
        if (r > 0) o += apart[0], a += apart[1], b += apart[2];
        for (int64_t i = 0; i < n; i++) o[i] = F::f(a[i], b[i]);
    }
}

template <class O>
ONCE void choices(O* o, const uint8_t* c, const O* a, const O* b, int64_t n, int64_t rows, const int64_t* apart) {
    for (int64_t r = 0; r < rows; r++) {
        if (r > 0) o += apart[0], c += apart[1], a += apart[2], b += apart[3];
        for (int64_t i = 0; i < n; i++) {
            const O x = a[i], y = b[i];  // both are read: no branch
            o[i] = c[i] ? x : y;
        }
    }
}

template <class O, class A, class F>
INLINE void map1(const Op& op, const Frame& frame) {
    each_run<O, A, A, A, 1>(op, frame, scalars1<O, A, F>);
}

template <class O, class A, class F>
INLINE void map2(const Op& op, const Frame& frame) {
    each_run<O, A, A, A, 2>(op, frame, scalars2<O, A, F>);
}

// Of whole numbers, one of which may be divided by zero.
template <class F>
INLINE void divide(const Op& op, Frame& frame) {
    bool zero = false;
    auto run = [&zero](int64_t* o, const int64_t* a, const int64_t* b, const int64_t*, int64_t n, int64_t rows, const int64_t* apart) {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++) {
                const int64_t x = a[i + (r ? r * apart[1] : 0)], y = b[i + (r ? r * apart[2] : 0)];
                zero |= y == 0, o[i + (r ? r * apart[0] : 0)] = F::f(x, y);
            }
    };
    each_run<int64_t, int64_t, int64_t, int64_t, 2>(op, frame, run);
    if (zero) frame.fail(false, 0, 0);
}

// condition, a, b
template <class O>
INLINE void where(const Op& op, const Frame& frame) {
    each_run<O, uint8_t, O, O, 3>(op, frame, choices<O>);
}

template <class O>
void fill(const Op& op, const Frame& frame, O number) {
    auto run = [number](O* o, const O*, const O*, const O*, int64_t n, int64_t rows, const int64_t* apart) {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++) o[i + (r ? r * apart[0] : 0)] = number;
    };
    each_run<O, O, O, O, 0>(op, frame, run);
}

#define ELMAN_SCALAR(name, expression)                                        \
    struct name##_scalar {                                                    \
        template <class A>                                                    \
        INLINE auto f(A a, A b = A()) { (void)b; return expression; }         \
    };
ELMAN_SCALAR(lt, a < b)
ELMAN_SCALAR(le, a <= b)
ELMAN_SCALAR(gt, a > b)
ELMAN_SCALAR(ge, a >= b)
ELMAN_SCALAR(eq, a == b)
ELMAN_SCALAR(ne, a != b)
ELMAN_SCALAR(same, a)
ELMAN_SCALAR(nonzero, a != A())
ELMAN_SCALAR(bool_and, uint8_t(a && b))
ELMAN_SCALAR(bool_or, uint8_t(a || b))
ELMAN_SCALAR(bool_xor, uint8_t((a != 0) != (b != 0)))
ELMAN_SCALAR(bool_not, uint8_t(!a))
// Whole numbers wrap around as torch's do.
ELMAN_SCALAR(int_add, int64_t(uint64_t(a) + uint64_t(b)))
ELMAN_SCALAR(int_sub, int64_t(uint64_t(a) - uint64_t(b)))
ELMAN_SCALAR(int_mul, int64_t(uint64_t(a) * uint64_t(b)))
ELMAN_SCALAR(int_maximum, a > b ? a : b)
ELMAN_SCALAR(int_minimum, a < b ? a : b)
ELMAN_SCALAR(int_remainder, b == 0 || b == -1 ? A(0) : a % b + ((a % b != 0 && (a % b < 0) != (b < 0)) ? b : 0))
ELMAN_SCALAR(int_floordiv, b == 0 ? A(0) : b == -1 ? int64_t(-uint64_t(a)) : a / b - (a % b != 0 && (a % b < 0) != (b < 0)))

}  // namespace ELMAN_ISA
}  // namespace elman
