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

// The first m lanes, or all of them; the others are zero.
template <class T>
INLINE Vec<T> some(const T* x, int m) {
    return m < LANES<T> ? load_part(x, m) : load(x);
}

template <class T>
INLINE void put(T* to, Vec<T> v, int m) {
    if (m < LANES<T>)
        store_part<T>(to, v, m);
    else
        store<T>(to, v);
}

// Calls f(i, m) for the vectors of a line of n elements: from i on, m lanes of it.
template <class T, class F>
INLINE void each_vector(int64_t n, F f) {
    for (int64_t i = 0; i < n; i += LANES<T>) f(i, n - i < LANES<T> ? int(n - i) : LANES<T>);
}

// --- sums over a line -----------------------------------------------------------------------------------------------------

// Σ f(i, m) in a fixed order: four vectors side by side, then their lanes. f(i, m) gives m terms, and zero in other lanes.
template <class T, class F>
INLINE T added(int64_t n, F f) {
    constexpr int L = LANES<T>;
    Vec<T> a = {}, b = {}, c = {}, d = {};
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L) a += f(i, L), b += f(i + L, L), c += f(i + 2 * L, L), d += f(i + 3 * L, L);
    for (; i + L <= n; i += L) a += f(i, L);
    if (i < n) b += f(i, int(n - i));
    const Vec<T> all = (a + b) + (c + d);
    T total = 0;
    for (int q = 0; q < L; q++) total += all[q];
    return total;
}

template <class T>
INLINE T sum_of(const T* x, int64_t s, int64_t n) {
    if (s == 1) return added<T>(n, [&](int64_t i, int m) { return some(x + i, m); });
    T total = 0;
    for (int64_t i = 0; i < n; i++) total += x[i * s];
    return total;
}

template <class T>
INLINE T dot(const T* x, const T* y, int64_t n) {
    return added<T>(n, [&](int64_t i, int m) { return some(x + i, m) * some(y + i, m); });
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
        each_vector<T>(n, [&](int64_t i, int m) {
            T v[L] = {}, e[L];
            for (int q = 0; q < m; q++) v[q] = x[(i + q) * s] - top;
            store<T>(e, exp_<T>(load(v)));
            for (int q = 0; q < m; q++) {
                total += e[q];
                o[(i + q) * so] = logarithm ? v[q] : e[q];
            }
        });
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
        const T squares = added<T>(n, [&](int64_t i, int m) {
            Vec<T> d = some(x + i, m) - middle;
            for (int q = m; q < L; q++) d[q] = 0;
            return d * d;
        });
        const T inverse = rsqrt_<T>(splat<T>(squares / T(n) + T(op.number)))[0];
        if (means) means[at[1]] = mean;
        if (inverses) inverses[at[2]] = inverse;
        if (!out) return;
        T* o = out + at[0];
        each_vector<T>(n, [&](int64_t i, int m) {
            Vec<T> v = (some(x + i, m) - middle) * inverse;
            if (scale) v *= some(scale + i, m);
            if (shift) v += some(shift + i, m);
            put<T>(o + i, v, m);
        });
    });
}

// result, gradient, argument, mean, 1 / σ, scale: with u = g · scale, x̂ = (x - mean) / σ: (u - mean u - x̂ mean(u x̂)) / σ
template <class T>
void layer_norm_backward(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *gradient = pointer<T>(op, f, 1), *in = pointer<T>(op, f, 2), *means = pointer<T>(op, f, 3), *inverses = pointer<T>(op, f, 4);
    const T* scale = pointer<T>(op, f, 5);
    const int64_t n = op.size[3];
    each_line<5>(op, f, [&](const int64_t* at) {
        const T *g = gradient + at[1], *x = in + at[2];
        const T mean = means[at[3]], inverse = inverses[at[4]];
        auto u = [&](int64_t i, int m) {
            const Vec<T> v = some(g + i, m);
            return !scale ? v : v * some(scale + i, m);
        };
        auto normal = [&](int64_t i, int m) { return (some(x + i, m) - mean) * inverse; };
        const T first = added<T>(n, u) / T(n);
        const T second = added<T>(n, [&](int64_t i, int m) { return u(i, m) * normal(i, m); }) / T(n);
        T* o = out + at[0];
        each_vector<T>(n, [&](int64_t i, int m) { put<T>(o + i, (u(i, m) - first - normal(i, m) * second) * inverse, m); });
    });
}

// --- products of values ---------------------------------------------------------------------------------------------------

template <int n>
struct Count {
    static constexpr int count = n;
};

// R rows and V vectors of columns of a product (or, if V is 0, one vector's first `lanes`). Each element is one chain over k.
template <class T, int R, int V>
static void block(const T* x, int64_t xm, int64_t xk, const T* y, int64_t yk, const T* start, int64_t sm, T* to, int64_t om, int64_t K, int lanes) {
    constexpr int L = LANES<T>, Q = V ? V : 1;
    auto get = [&](const T* from) { return V ? load(from) : load_part(from, lanes); };
    Vec<T> sum[R][Q];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int q = 0; q < Q; q++) sum[r][q] = start ? get(start + r * sm + q * L) : Vec<T>{};
    for (int64_t k = 0; k < K; k++) {
        Vec<T> right[Q];
#pragma GCC unroll 4
        for (int q = 0; q < Q; q++) right[q] = get(y + k * yk + q * L);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Vec<T> left = splat<T>(x[r * xm + k * xk]);
#pragma GCC unroll 4
            for (int q = 0; q < Q; q++) sum[r][q] += left * right[q];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int q = 0; q < Q; q++) {
            if (V)
                store<T>(to + r * om + q * L, sum[r][q]);
            else
                store_part<T>(to + r * om, sum[r][q], lanes);
        }
}

// result, a, b, start (may be none): out[i, m, n] = start[i, m, n] + Σ_k a[i, m, k] b[i, k, n]; size is [1, i, m, n]
template <class T>
void matmul(const Op& op, const Frame& f) {
    T *out = pointer<T>(op, f, 0), *left = pointer<T>(op, f, 1), *right = pointer<T>(op, f, 2), *start = pointer<T>(op, f, 3);
    const Operand &o = op.operand[0], &a = op.operand[1], &b = op.operand[2], &c = op.operand[3];
    const int64_t M = op.size[2], N = op.size[3], K = op.k;
    const int64_t xm = a.stride[2], xk = a.stride[3], yk = b.stride[2], yn = b.stride[3], om = o.stride[2], on = o.stride[3];
    const int64_t sm = start ? c.stride[2] : 0, sn = start ? c.stride[3] : 0;
    constexpr int L = LANES<T>;
    for (int64_t r = 0; r < f.rows; r++)
        for (int64_t i = 0; i < op.size[1]; i++) {
            T* to = out + r * f.row(o) + i * o.stride[1];
            const T* x = left + r * f.row(a) + i * a.stride[1];
            const T* y = right + r * f.row(b) + i * b.stride[1];
            const T* s = start ? start + r * f.row(c) + i * c.stride[1] : nullptr;
            if (yn == 1 && on == 1 && N > 1 && (!s || sn == 1)) {
                auto strip = [&](int64_t n, auto vectors, int lanes) {
                    constexpr int V = decltype(vectors)::count;
                    auto rows = [&](int64_t m, auto height) {
                        block<T, decltype(height)::count, V>(x + m * xm, xm, xk, y + n, yk, s ? s + m * sm + n : nullptr, sm, to + m * om + n, om, K, lanes);
                    };
                    int64_t m = 0;
                    for (; m + 6 <= M; m += 6) rows(m, Count<6>());
                    for (; m + 2 <= M; m += 2) rows(m, Count<2>());
                    for (; m < M; m++) rows(m, Count<1>());
                };
                int64_t n = 0;
                for (; n + 2 * L <= N; n += 2 * L) strip(n, Count<2>(), L);
                for (; n + L <= N; n += L) strip(n, Count<1>(), L);
                if (n < N) strip(n, Count<0>(), int(N - n));
                continue;
            }
            for (int64_t m = 0; m < M; m++)
                for (int64_t n = 0; n < N; n++) {
                    T total = 0;
                    if (xk == 1 && yk == 1)
                        total = dot(x + m * xm, y + n * yn, K);
                    else
                        for (int64_t k = 0; k < K; k++) total += x[m * xm + k * xk] * y[k * yk + n * yn];
                    to[m * om + n * on] = s ? s[m * sm + n * sn] + total : total;
                }
        }
}

// --- indices ------------------------------------------------------------------------------------------------------------

// Calls move(chosen, other) for each index of a line: operand `chosen` has its last stride along the dimension of length k,
// operand `other` lies like the index, which is the third.
template <class V, int chosen, int other, class Move>
INLINE void each_index(const Op& op, Frame& f, Move move) {
    V *from = pointer<V>(op, f, chosen), *to = pointer<V>(op, f, other);
    const int64_t* index = pointer<int64_t>(op, f, 2);
    const int64_t n = op.size[3], sc = op.operand[chosen].stride[3], so = op.operand[other].stride[3], si = op.operand[2].stride[3];
    const bool behind = op.number != 0;
    each_line<3>(op, f, [&](const int64_t* at) {
        for (int64_t i = 0; i < n; i++) {
            const int64_t given = index[at[2] + i * si];
            const int64_t found = given < 0 && behind ? given + op.k : given;
            if (found < 0 || found >= op.k)
                f.fail(behind, given, op.k);
            else
                move(from[at[chosen] + found * sc], to[at[other] + i * so]);
        }
    });
}

// result, argument (where indices choose), index
template <class V>
void gather(const Op& op, Frame& f) {
    each_index<V, 1, 0>(op, f, [](const V& in, V& out) { out = in; });
}

// result (where indices choose; it holds what is not written), source, index
template <class V, bool add>
void scatter(const Op& op, Frame& f) {
    each_index<V, 0, 1>(op, f, [](V& out, const V& in) { out = add ? out + in : in; });
}

}  // namespace ELMAN_ISA
}  // namespace elman
