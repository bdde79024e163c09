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

// What an operation does with contiguous pieces, `rows` of them with n elements each: at[0] is the result's, behind it are the
// arguments'; they lie apart[…] elements apart, which is read where there is more than one. Each operation has one such
// function for its types, and all that finds the pieces is the same for everybody: so it is compiled once.
typedef void (*Run)(char* const* at, int64_t n, int64_t rows, const int64_t* apart);

// Bytes of an element of the result and of each argument.
struct Widths {
    int64_t bytes[4];
};

template <class O, class A = O, class B = A, class C = B>
constexpr Widths WIDTHS = {{sizeof(O), sizeof(A), sizeof(B), sizeof(C)}};

template <class V>
INLINE void copy_apart(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t n) {
    for (int64_t i = 0; i < n; i++) reinterpret_cast<V*>(to)[i * to_stride] = reinterpret_cast<const V*>(from)[i * from_stride];
}

ONCE void copy_apart(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t n, int64_t bytes) {
    // Bits of whatever type has so many: no compiler may think that a float is not read here.
    typedef int32_t __attribute__((may_alias)) Four;
    typedef int64_t __attribute__((may_alias)) Eight;
    if (bytes == 1) copy_apart<uint8_t>(to, to_stride, from, from_stride, n);
    if (bytes == 4) copy_apart<Four>(to, to_stride, from, from_stride, n);
    if (bytes == 8) copy_apart<Eight>(to, to_stride, from, from_stride, n);
}

// Where operands lie in any other way: pieces of them are put in order, and the result back.
ONCE void each_piece(const Op& op, const Frame& f, int arity, Run run, const Widths& widths, char* more) {
    constexpr int last = DIMENSIONS - 1;
    alignas(8) char room[4][CHUNK * 8];
    char *begin[4], *at[4];
    int64_t row[4];
    for (int q = 0; q <= arity; q++) begin[q] = f.base[op.operand[q].buffer] + op.operand[q].offset * widths.bytes[q], row[q] = f.row(op.operand[q]);
    if (arity < 3) at[arity + 1] = more;
    // m elements that lie `apart`, in order.
    auto piece = [&](char* const* from, const int64_t* apart, int64_t m) {
        for (int q = 0; q <= arity; q++) at[q] = apart[q] == 1 ? from[q] : room[q];
        for (int q = 1; q <= arity; q++)
            if (apart[q] != 1) copy_apart(at[q], 1, from[q], apart[q], m, widths.bytes[q]);
        run(at, m, 1, nullptr);
        if (apart[0] != 1) copy_apart(from[0], apart[0], at[0], 1, m, widths.bytes[0]);
    };
    char* from[4];
    if (op.size[0] * op.size[1] * op.size[2] * op.size[last] == 1) {  // one number for each row
        for (int64_t r = 0; r < f.rows; r += CHUNK) {
            for (int q = 0; q <= arity; q++) from[q] = begin[q] + r * row[q] * widths.bytes[q];
            piece(from, row, f.rows - r < CHUNK ? f.rows - r : CHUNK);
        }
        return;
    }
    int64_t apart[4];
    for (int q = 0; q <= arity; q++) apart[q] = op.operand[q].stride[last];
    const int64_t n = op.size[last];
    for (int64_t r = 0; r < f.rows; r++)
        for (int64_t i = 0; i < op.size[0]; i++)
            for (int64_t j = 0; j < op.size[1]; j++)
                for (int64_t k = 0; k < op.size[2]; k++)
                    for (int64_t l = 0; l < n; l += CHUNK) {
                        for (int q = 0; q <= arity; q++) {
                            const int64_t* stride = op.operand[q].stride;
                            from[q] = begin[q] + (r * row[q] + i * stride[0] + j * stride[1] + k * stride[2] + l * stride[last]) * widths.bytes[q];
                        }
                        piece(from, apart, n - l < CHUNK ? n - l : CHUNK);
                    }
}

// Calls `run` on pieces that cover all rows of the block. `more` is handed to it behind the arguments.
template <int arity>
ONCE void each_run(const Op& op, const Frame& f, Run run, const Widths& widths, char* more = nullptr) {
    constexpr int last = DIMENSIONS - 1;
    const int64_t n = op.size[last];
    bool dense = true, whole = true;
    char* at[4];
    int64_t apart[4];
#pragma GCC unroll 4
    for (int q = 0; q <= arity; q++) {
        const Operand& o = op.operand[q];
        at[q] = f.base[o.buffer] + o.offset * widths.bytes[q], apart[q] = f.row(o);
        dense &= o.stride[last] == 1, whole &= apart[q] == n;
    }
    if (arity < 3) at[arity + 1] = more;
    if (op.size[0] * op.size[1] * op.size[2] != 1 || (!dense && n != 1)) return each_piece(op, f, arity, run, widths, more);
    if (f.parts == 1 || !op.split) {
        if (whole) return run(at, n * f.rows, 1, nullptr);
        if (n == 1 && f.rows > 1) return each_piece(op, f, arity, run, widths, more);
        return run(at, n, f.rows, apart);
    }
    const int64_t first = f.share(n, f.part), count = f.share(n, f.part + 1) - first;
    if (count <= 0) return;
    for (int q = 0; q <= arity; q++) at[q] += first * widths.bytes[q];
    run(at, count, f.rows, apart);
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
ONCE void vectors(char* const* at, int64_t n, int64_t rows, const int64_t* apart) {
    constexpr int L = LANES<T>;
    T* o = reinterpret_cast<T*>(at[0]);
    const T *a = reinterpret_cast<const T*>(at[1]), *b = reinterpret_cast<const T*>(at[arity > 1 ? 2 : 0]), *c = reinterpret_cast<const T*>(at[arity > 2 ? 3 : 0]);
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
        T part[4][L];
        copy_part(part[1], a + i, m);
        if (arity > 1) copy_part(part[2], b + i, m);
        if (arity > 2) copy_part(part[3], c + i, m);
        char* const parts[4] = {reinterpret_cast<char*>(part[0]), reinterpret_cast<char*>(part[1]), reinterpret_cast<char*>(part[2]), reinterpret_cast<char*>(part[3])};
        vectors<T, arity, F>(parts, L, 1, nullptr);
        copy_back(o + i, part[0], m);
    }
}

template <class T, class F>
INLINE void unary(const Op& op, const Frame& frame) {
    each_run<1>(op, frame, vectors<T, 1, F>, WIDTHS<T>);
}

template <class T, class F>
INLINE void binary(const Op& op, const Frame& frame) {
    each_run<2>(op, frame, vectors<T, 2, F>, WIDTHS<T>);
}

template <class T, class F>
INLINE void ternary(const Op& op, const Frame& frame) {
    each_run<3>(op, frame, vectors<T, 3, F>, WIDTHS<T>);
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

template <class V>
INLINE V* row_of(char* const* at, const int64_t* apart, int q, int64_t r) {
    return reinterpret_cast<V*>(at[q]) + (r > 0 ? r * apart[q] : 0);
}

template <class O, class A, class F>
ONCE void scalars1(char* const* at, int64_t n, int64_t rows, const int64_t* apart) {
    for (int64_t r = 0; r < rows; r++) {
        O* o = row_of<O>(at, apart, 0, r);
        const A* a = row_of<A>(at, apart, 1, r);
        for (int64_t i = 0; i < n; i++) o[i] = F::f(a[i]);
    }
}

template <class O, class A, class F>
ONCE void scalars2(char* const* at, int64_t n, int64_t rows, const int64_t* apart) {
    for (int64_t r = 0; r < rows; r++) {
        O* o = row_of<O>(at, apart, 0, r);
        const A *a = row_of<A>(at, apart, 1, r), *b = row_of<A>(at, apart, 2, r);
        for (int64_t i = 0; i < n; i++) o[i] = F::f(a[i], b[i]);
    }
}

template <class O, class A, class F>
INLINE void map1(const Op& op, const Frame& frame) {
    each_run<1>(op, frame, scalars1<O, A, F>, WIDTHS<O, A>);
}

template <class O, class A, class F>
INLINE void map2(const Op& op, const Frame& frame) {
    each_run<2>(op, frame, scalars2<O, A, F>, WIDTHS<O, A>);
}

// Of whole numbers, one of which may be divided by zero, which is said behind the arguments.
template <class F>
ONCE void quotients(char* const* at, int64_t n, int64_t rows, const int64_t* apart) {
    bool zero = false;
    for (int64_t r = 0; r < rows; r++) {
        int64_t* o = row_of<int64_t>(at, apart, 0, r);
        const int64_t *a = row_of<int64_t>(at, apart, 1, r), *b = row_of<int64_t>(at, apart, 2, r);
        for (int64_t i = 0; i < n; i++) zero |= b[i] == 0, o[i] = F::f(a[i], b[i]);
    }
    *reinterpret_cast<bool*>(at[3]) |= zero;
}

template <class F>
void divide(const Op& op, Frame& frame) {
    bool zero = false;
    each_run<2>(op, frame, quotients<F>, WIDTHS<int64_t>, reinterpret_cast<char*>(&zero));
    if (zero) frame.fail(false, 0, 0);
}

template <class O>
ONCE void choices(char* const* at, int64_t n, int64_t rows, const int64_t* apart) {
    for (int64_t r = 0; r < rows; r++) {
        O* o = row_of<O>(at, apart, 0, r);
        const uint8_t* c = row_of<uint8_t>(at, apart, 1, r);
        const O *a = row_of<O>(at, apart, 2, r), *b = row_of<O>(at, apart, 3, r);
        for (int64_t i = 0; i < n; i++) {
            const O x = a[i], y = b[i];  // both are read: no branch
            o[i] = c[i] ? x : y;
        }
    }
}

// condition, a, b
template <class O>
INLINE void where(const Op& op, const Frame& frame) {
    each_run<3>(op, frame, choices<O>, WIDTHS<O, uint8_t, O>);
}

template <class O>
ONCE void numbers(char* const* at, int64_t n, int64_t rows, const int64_t* apart) {
    const O number = *reinterpret_cast<const O*>(at[1]);
    for (int64_t r = 0; r < rows; r++) {
        O* o = row_of<O>(at, apart, 0, r);
        for (int64_t i = 0; i < n; i++) o[i] = number;
    }
}

template <class O>
void fill(const Op& op, const Frame& frame, O number) {
    each_run<0>(op, frame, numbers<O>, WIDTHS<O>, reinterpret_cast<char*>(&number));
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
