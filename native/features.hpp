// Operations along the features of a row: sums, softmax, layer norm, small products, gather and scatter.
//
// Each is one function on a line of `n` elements that lie `s` apart; `size[0 … 2]` count the lines of a row. The order of
// an operation's additions depends on n alone.
#pragma once

#include "frame.hpp"
#include "functions.hpp"
#include "products.hpp"

namespace elman {
namespace ELMAN_ISA {

// Calls line(pointers…) for every line of every row, with the pointers of the first N operands.
template <int N, class Line>
INLINE void each_line(const Op& op, const Frame& f, Line line) {
    int64_t at[N];
    for (int64_t r = 0; r < f.rows; r++)
        for (int64_t i = 0; i < op.size[0]; i++)
            for (int64_t j = 0; j < op.size[1]; j++)
                for (int64_t k = 0; k < op.size[2]; k++) {
                    for (int q = 0; q < N; q++) {
                        const Operand& o = op.operand[q];
                        at[q] = o.buffer < 0 ? 0 : r * f.row(o) + i * o.stride[0] + j * o.stride[1] + k * o.stride[2];
                    }
                    line(at);
                }
}

template <class T>
INLINE T* pointer(const Op& op, const Frame& f, int q) {
    return op.operand[q].buffer < 0 ? nullptr : f.at<T>(op.operand[q]);
}

// --- sums over a line -----------------------------------------------------------------------------------------------------

// Σ f(i) in a fixed order: four vectors side by side, then their lanes. f(i) gives LANES terms, part(i, m) the last m.
template <class T, class F, class Part>
INLINE T added(int64_t n, F f, Part part) {
    constexpr int L = LANES<T>;
    Vec<T> a = {}, b = {}, c = {}, d = {};
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L) a += f(i), b += f(i + L), c += f(i + 2 * L), d += f(i + 3 * L);
    for (; i + L <= n; i += L) a += f(i);
    if (i < n) b += part(i, int(n - i));
    const Vec<T> all = (a + b) + (c + d);
    T total = 0;
    for (int q = 0; q < L; q++) total += all[q];
    return total;
}

template <class T>
INLINE T sum_of(const T* x, int64_t s, int64_t n) {
    if (s == 1) return added<T>(n, [&](int64_t i) { return load(x + i); }, [&](int64_t i, int m) { return load_part(x + i, m); });
    T total = 0;
    for (int64_t i = 0; i < n; i++) total += x[i * s];
    return total;
}

template <class T>
INLINE T dot(const T* x, const T* y, int64_t n) {
    return added<T>(n, [&](int64_t i) { return load(x + i) * load(y + i); },
                    [&](int64_t i, int m) { return load_part(x + i, m) * load_part(y + i, m); });
}

// The largest (or smallest) element and where it is; NaN is larger and smaller than everything, as in torch.
template <class T, bool largest>
INLINE int64_t extreme(const T* x, int64_t s, int64_t n) {
    int64_t found = 0;
    for (int64_t i = 1; i < n; i++) {
        const T a = x[i * s], best = x[found * s];
        if (best != best) break;
        if (a != a || (largest ? a > best : a < best)) found = i;
    }
    return found;
}

// result, argument
template <class T, int kind>
void reduce(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *in = pointer<T>(op, f, 1);
    const int64_t n = op.size[3], s = op.operand[1].stride[3];
    each_line<2>(op, f, [&](const int64_t* at) {
        const T* x = in + at[1];
        T value = 1;
        if (kind == code_sum) value = sum_of(x, s, n);
        if (kind == code_prod)
            for (int64_t i = 0; i < n; i++) value *= x[i * s];
        if (kind == code_amax) value = x[extreme<T, true>(x, s, n) * s];
        if (kind == code_amin) value = x[extreme<T, false>(x, s, n) * s];
        out[at[0]] = value;
    });
}

// value, index, argument
template <class T, bool largest>
void extremes(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *in = pointer<T>(op, f, 2);
    int64_t* where = pointer<int64_t>(op, f, 1);
    const int64_t n = op.size[3], s = op.operand[2].stride[3];
    each_line<3>(op, f, [&](const int64_t* at) {
        const int64_t found = extreme<T, largest>(in + at[2], s, n);
        if (out) out[at[0]] = in[at[2] + found * s];
        if (where) where[at[1]] = found;
    });
}

// result, argument
template <bool all>
void logical(const Op& op, const Frame& f) {
    uint8_t *out = pointer<uint8_t>(op, f, 0), *in = pointer<uint8_t>(op, f, 1);
    const int64_t n = op.size[3], s = op.operand[1].stride[3];
    each_line<2>(op, f, [&](const int64_t* at) {
        bool value = all;
        for (int64_t i = 0; i < n; i++) value = all ? value && in[at[1] + i * s] : value || in[at[1] + i * s];
        out[at[0]] = value;
    });
}

// result, argument
template <class T>
void cumsum(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *in = pointer<T>(op, f, 1);
    const int64_t n = op.size[3], so = op.operand[0].stride[3], s = op.operand[1].stride[3];
    each_line<2>(op, f, [&](const int64_t* at) {
        T total = 0;
        for (int64_t i = 0; i < n; i++) out[at[0] + i * so] = total += in[at[1] + i * s];
    });
}

// --- normalisations ---------------------------------------------------------------------------------------------------------

template <class T>
INLINE T of_one(Vec<T> (*function)(Vec<T>), T x) {
    return function(splat<T>(x))[0];
}

// result, argument: x - max, exp, and the quotient (or difference) with the sum
template <class T, bool logarithm>
void softmax(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *in = pointer<T>(op, f, 1);
    const int64_t n = op.size[3], so = op.operand[0].stride[3], s = op.operand[1].stride[3];
    constexpr int L = LANES<T>;
    each_line<2>(op, f, [&](const int64_t* at) {
        const T* x = in + at[1];
        T* o = out + at[0];
        const T top = x[extreme<T, true>(x, s, n) * s];
        T total = 0;
        for (int64_t i = 0; i < n; i += L) {
            const int m = n - i < L ? int(n - i) : L;
            T v[L] = {}, e[L];
            for (int q = 0; q < m; q++) v[q] = x[(i + q) * s] - top;
            store<T>(e, exp_<T>(load(v)));
            for (int q = 0; q < m; q++) {
                total += e[q];
                o[(i + q) * so] = logarithm ? v[q] : e[q];
            }
        }
        const T last = logarithm ? log_<T>(splat<T>(total))[0] : T(1) / total;
        for (int64_t i = 0; i < n; i++) o[i * so] = logarithm ? o[i * so] - last : o[i * so] * last;
    });
}

// result, gradient, the softmax y (or its logarithm): y (g - Σ g y), or g - exp(y) Σ g
template <class T, bool logarithm>
void softmax_backward(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *gradient = pointer<T>(op, f, 1), *made = pointer<T>(op, f, 2);
    const int64_t n = op.size[3], so = op.operand[0].stride[3], sg = op.operand[1].stride[3], sy = op.operand[2].stride[3];
    each_line<3>(op, f, [&](const int64_t* at) {
        const T *g = gradient + at[1], *y = made + at[2];
        T total = 0;
        for (int64_t i = 0; i < n; i++) total += logarithm ? g[i * sg] : g[i * sg] * y[i * sy];
        for (int64_t i = 0; i < n; i++)
            out[at[0] + i * so] = logarithm ? g[i * sg] - exp_<T>(splat<T>(y[i * sy]))[0] * total : y[i * sy] * (g[i * sg] - total);
    });
}

// result, mean, 1 / σ, argument, scale, shift; the elements of a line lie side by side
template <class T>
void layer_norm(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *means = pointer<T>(op, f, 1), *inverses = pointer<T>(op, f, 2), *in = pointer<T>(op, f, 3);
    const T *scale = pointer<T>(op, f, 4), *shift = pointer<T>(op, f, 5);
    const int64_t n = op.size[3];
    constexpr int L = LANES<T>;
    each_line<4>(op, f, [&](const int64_t* at) {
        const T* x = in + at[3];
        const T mean = sum_of(x, 1, n) / T(n);
        const Vec<T> middle = splat<T>(mean);
        const T squares = added<T>(
            n, [&](int64_t i) { const Vec<T> d = load(x + i) - middle; return d * d; },
            [&](int64_t i, int m) {
                Vec<T> d = load_part(x + i, m) - middle;
                for (int q = m; q < L; q++) d[q] = 0;
                return d * d;
            });
        const T inverse = rsqrt_<T>(splat<T>(squares / T(n) + T(op.number)))[0];
        if (means) means[at[1]] = mean;
        if (inverses) inverses[at[2]] = inverse;
        if (!out) return;
        T* o = out + at[0];
        for (int64_t i = 0; i < n; i += L) {
            const int m = n - i < L ? int(n - i) : L;
            Vec<T> v = ((m < L ? load_part(x + i, m) : load(x + i)) - middle) * inverse;
            if (scale) v *= m < L ? load_part(scale + i, m) : load(scale + i);
            if (shift) v += m < L ? load_part(shift + i, m) : load(shift + i);
            if (m < L)
                store_part<T>(o + i, v, m);
            else
                store<T>(o + i, v);
        }
    });
}

// result, gradient, argument, mean, 1 / σ, scale: with u = g · scale, x̂ = (x - mean) / σ: (u - mean u - x̂ mean(u x̂)) / σ
template <class T>
void layer_norm_backward(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *gradient = pointer<T>(op, f, 1), *in = pointer<T>(op, f, 2), *means = pointer<T>(op, f, 3), *inverses = pointer<T>(op, f, 4);
    const T* scale = pointer<T>(op, f, 5);
    const int64_t n = op.size[3];
    constexpr int L = LANES<T>;
    each_line<5>(op, f, [&](const int64_t* at) {
        const T *g = gradient + at[1], *x = in + at[2];
        const T mean = means[at[3]], inverse = inverses[at[4]];
        auto u = [&](int64_t i, int m) {
            const Vec<T> v = m < L ? load_part(g + i, m) : load(g + i);
            return !scale ? v : v * (m < L ? load_part(scale + i, m) : load(scale + i));
        };
        auto normal = [&](int64_t i, int m) { return ((m < L ? load_part(x + i, m) : load(x + i)) - mean) * inverse; };
        const T first = added<T>(n, [&](int64_t i) { return u(i, L); }, [&](int64_t i, int m) { return u(i, m); }) / T(n);
        const T second = added<T>(n, [&](int64_t i) { return u(i, L) * normal(i, L); }, [&](int64_t i, int m) { return u(i, m) * normal(i, m); }) / T(n);
        T* o = out + at[0];
        for (int64_t i = 0; i < n; i += L) {
            const int m = n - i < L ? int(n - i) : L;
            const Vec<T> v = (u(i, m) - first - normal(i, m) * second) * inverse;
            if (m < L)
                store_part<T>(o + i, v, m);
            else
                store<T>(o + i, v);
        }
    });
}

// --- products of values ---------------------------------------------------------------------------------------------------

// result, a, b, start (may be none): out[i, m, n] = start[i, m, n] + Σ_k a[i, m, k] b[i, k, n]; size is [1, i, m, n]
template <class T>
void matmul(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *left = pointer<T>(op, f, 1), *right = pointer<T>(op, f, 2), *start = pointer<T>(op, f, 3);
    const Operand &o = op.operand[0], &a = op.operand[1], &b = op.operand[2], &c = op.operand[3];
    const int64_t M = op.size[2], N = op.size[3], K = op.k;
    constexpr int L = LANES<T>;
    for (int64_t r = 0; r < f.rows; r++)
        for (int64_t i = 0; i < op.size[1]; i++)
            for (int64_t m = 0; m < M; m++) {
                T* to = out + r * f.row(o) + i * o.stride[1] + m * o.stride[2];
                const T* x = left + r * f.row(a) + i * a.stride[1] + m * a.stride[2];
                const T* y = right + r * f.row(b) + i * b.stride[1];
                const T* s = start ? start + r * f.row(c) + i * c.stride[1] + m * c.stride[2] : nullptr;
                const int64_t sk = a.stride[3], bk = b.stride[2], bn = b.stride[3], so = o.stride[3], ss = start ? c.stride[3] : 0;
                if (bn == 1 && so == 1 && N > 1 && (!s || ss == 1)) {
                    int64_t n = 0;
                    for (; n + L <= N; n += L) {
                        Vec<T> total = s ? load(s + n) : Vec<T>{};
                        for (int64_t k = 0; k < K; k++) total += splat<T>(x[k * sk]) * load(y + k * bk + n);
                        store<T>(to + n, total);
                    }
                    if (n < N) {
                        const int rest = int(N - n);
                        Vec<T> total = s ? load_part(s + n, rest) : Vec<T>{};
                        for (int64_t k = 0; k < K; k++) total += splat<T>(x[k * sk]) * load_part(y + k * bk + n, rest);
                        store_part<T>(to + n, total, rest);
                    }
                } else
                    for (int64_t n = 0; n < N; n++) {
                        T total = 0;
                        if (sk == 1 && bk == 1)
                            total = dot(x, y + n * bn, K);
                        else
                            for (int64_t k = 0; k < K; k++) total += x[k * sk] * y[k * bk + n * bn];
                        to[n * so] = s ? s[n * ss] + total : total;
                    }
            }
}

// --- indices ------------------------------------------------------------------------------------------------------------

// result, argument (its last stride along the dimension of length k), index (like the result)
template <class V>
void gather(const Op& op, Frame& f) {
    V *out = pointer<V>(op, f, 0), *in = pointer<V>(op, f, 1);
    const int64_t* index = pointer<int64_t>(op, f, 2);
    const int64_t n = op.size[3], so = op.operand[0].stride[3], s = op.operand[1].stride[3], si = op.operand[2].stride[3];
    each_line<3>(op, f, [&](const int64_t* at) {
        for (int64_t i = 0; i < n; i++) {
            int64_t found = index[at[2] + i * si];
            if (found < 0) found += op.k;
            if (found < 0 || found >= op.k)
                f.error = 1;
            else
                out[at[0] + i * so] = in[at[1] + found * s];
        }
    });
}

// result (which holds what is not written; its last stride along the dimension of length k), source, index (like the source)
template <class V, bool add>
void scatter(const Op& op, Frame& f) {
    V *out = pointer<V>(op, f, 0), *source = pointer<V>(op, f, 1);
    const int64_t* index = pointer<int64_t>(op, f, 2);
    const int64_t n = op.size[3], so = op.operand[0].stride[3], s = op.operand[1].stride[3], si = op.operand[2].stride[3];
    each_line<3>(op, f, [&](const int64_t* at) {
        for (int64_t i = 0; i < n; i++) {
            int64_t found = index[at[2] + i * si];
            if (found < 0) found += op.k;
            if (found < 0 || found >= op.k)
                f.error = 1;
            else if (add)
                out[at[0] + found * so] += source[at[1] + i * s];
            else
                out[at[0] + found * so] = source[at[1] + i * s];
        }
    });
}

}  // namespace ELMAN_ISA
}  // namespace elman
