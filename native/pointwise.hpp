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
INLINE T* gather_run(const T* p, int64_t stride, int64_t n, T* temporary) {
    if (stride == 1) return const_cast<T*>(p);
    if (stride == 0)
        for (int64_t i = 0; i < n; i++) temporary[i] = *p;
    else
        for (int64_t i = 0; i < n; i++) temporary[i] = p[i * stride];
    return temporary;
}

// Calls run(out, a, b, c, n) on contiguous pieces that cover all rows of the block. A, B, C: types of the arguments, as
// many as `arity` says.
template <class O, class A, class B, class C, int arity, class Run>
INLINE void each_run(const Op& op, const Frame& f, Run run) {
    const Operand *po = &op.operand[0], *pa = &op.operand[1], *pb = &op.operand[2], *pc = &op.operand[3];
    constexpr int last = DIMENSIONS - 1;
    const int64_t n = op.size[last];
    const bool line = op.size[0] * op.size[1] * op.size[2] == 1;
    const bool dense = po->stride[last] == 1 && (arity < 1 || pa->stride[last] == 1) &&
                       (arity < 2 || pb->stride[last] == 1) && (arity < 3 || pc->stride[last] == 1);
    O* o = f.at<O>(*po);
    A* a = arity > 0 ? f.at<A>(*pa) : nullptr;
    B* b = arity > 1 ? f.at<B>(*pb) : nullptr;
    C* c = arity > 2 ? f.at<C>(*pc) : nullptr;
    const int64_t ro = f.row(*po), ra = arity > 0 ? f.row(*pa) : n, rb = arity > 1 ? f.row(*pb) : n,
                  rc = arity > 2 ? f.row(*pc) : n;
    if (line && (dense || n == 1)) {
        if (f.parts == 1 || !op.split) {
            if (ro == n && ra == n && rb == n && rc == n) return run(o, a, b, c, n * f.rows);
            if (n > 1 || f.rows == 1) {
                for (int64_t r = 0; r < f.rows; r++) run(o + r * ro, a + r * ra, b + r * rb, c + r * rc, n);
                return;
            }
        } else {
            const int64_t first = f.share(n, f.part), count = f.share(n, f.part + 1) - first;
            for (int64_t r = 0; r < f.rows && count > 0; r++)
                run(o + r * ro + first, a + r * ra + first, b + r * rb + first, c + r * rc + first, count);
            return;
        }
    }
    O to[CHUNK];
    A ta[CHUNK];
    B tb[CHUNK];
    C tc[CHUNK];
    if (line && n == 1) {  // one number for each row
        for (int64_t r = 0; r < f.rows; r += CHUNK) {
            const int64_t m = f.rows - r < CHUNK ? f.rows - r : CHUNK;
            O* target = ro == 1 ? o + r : to;
            run(target, arity > 0 ? gather_run(a + r * ra, ra, m, ta) : nullptr,
                arity > 1 ? gather_run(b + r * rb, rb, m, tb) : nullptr,
                arity > 2 ? gather_run(c + r * rc, rc, m, tc) : nullptr, m);
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
                        O* out = o + r * ro + i * po->stride[0] + j * po->stride[1] + k * po->stride[2] + l * so;
                        O* target = so == 1 ? out : to;
                        A* xa = arity > 0 ? gather_run(a + r * ra + i * pa->stride[0] + j * pa->stride[1] + k * pa->stride[2] + l * sa, sa, m, ta) : nullptr;
                        B* xb = arity > 1 ? gather_run(b + r * rb + i * pb->stride[0] + j * pb->stride[1] + k * pb->stride[2] + l * sb, sb, m, tb) : nullptr;
                        C* xc = arity > 2 ? gather_run(c + r * rc + i * pc->stride[0] + j * pc->stride[1] + k * pc->stride[2] + l * sc, sc, m, tc) : nullptr;
                        run(target, xa, xb, xc, m);
                        if (target == to)
                            for (int64_t q = 0; q < m; q++) out[q * so] = to[q];
                    }
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

#define ELMAN_VECTOR_LOOP(expression, part)                            \
    int64_t i = 0;                                                     \
    for (; i + LANES<T> <= n; i += LANES<T>) store<T>(o + i, expression); \
    if (i < n) {                                                       \
        const int m = int(n - i);                                      \
        store_part<T>(o + i, part, m);                                 \
    }

template <class T, class F>
void unary(const Op& op, const Frame& frame) {
    each_run<T, T, T, T, 1>(op, frame, [](T* o, const T* a, const T*, const T*, int64_t n) {
        ELMAN_VECTOR_LOOP((F::template f<T>(load(a + i))), (F::template f<T>(load_part(a + i, m))))
    });
}

template <class T, class F>
void binary(const Op& op, const Frame& frame) {
    each_run<T, T, T, T, 2>(op, frame, [](T* o, const T* a, const T* b, const T*, int64_t n) {
        ELMAN_VECTOR_LOOP((F::template f<T>(load(a + i), load(b + i))), (F::template f<T>(load_part(a + i, m), load_part(b + i, m))))
    });
}

template <class T, class F>
void ternary(const Op& op, const Frame& frame) {
    each_run<T, T, T, T, 3>(op, frame, [](T* o, const T* a, const T* b, const T* c, int64_t n) {
        ELMAN_VECTOR_LOOP((F::template f<T>(load(a + i), load(b + i), load(c + i))),
                          (F::template f<T>(load_part(a + i, m), load_part(b + i, m), load_part(c + i, m))))
    });
}
#undef ELMAN_VECTOR_LOOP

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
void map1(const Op& op, const Frame& frame) {
    each_run<O, A, A, A, 1>(op, frame, [](O* o, const A* a, const A*, const A*, int64_t n) {
        for (int64_t i = 0; i < n; i++) o[i] = F::f(a[i]);
    });
}

template <class O, class A, class F>
void map2(const Op& op, const Frame& frame) {
    each_run<O, A, A, A, 2>(op, frame, [](O* o, const A* a, const A* b, const A*, int64_t n) {
        for (int64_t i = 0; i < n; i++) o[i] = F::f(a[i], b[i]);
    });
}

// Of whole numbers, one of which may be divided by zero.
template <class F>
void divide(const Op& op, Frame& frame) {
    bool zero = false;
    each_run<int64_t, int64_t, int64_t, int64_t, 2>(op, frame, [&zero](int64_t* o, const int64_t* a, const int64_t* b, const int64_t*, int64_t n) {
        for (int64_t i = 0; i < n; i++) zero |= b[i] == 0, o[i] = F::f(a[i], b[i]);
    });
    if (zero) frame.fail(false, 0, 0);
}

// condition, a, b
template <class O>
void where(const Op& op, const Frame& frame) {
    each_run<O, uint8_t, O, O, 3>(op, frame, [](O* o, const uint8_t* c, const O* a, const O* b, int64_t n) {
        for (int64_t i = 0; i < n; i++) {
            const O x = a[i], y = b[i];  // both are read: no branch
            o[i] = c[i] ? x : y;
        }
    });
}

template <class O>
void fill(const Op& op, const Frame& frame, O number) {
    each_run<O, O, O, O, 0>(op, frame, [number](O* o, const O*, const O*, const O*, int64_t n) {
        for (int64_t i = 0; i < n; i++) o[i] = number;
    });
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
