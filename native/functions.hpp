// Elementary functions of a whole vector, for float and double: each lane by itself, the same bits wherever it stands.
//
//   exponentials   exp_ expm1_ tanh_ sigmoid_          at most 2 ulp (tests/functions.cpp holds it, accuracy.cpp measures it)
//   logarithms     log_ log1p_                         at most 2 ulp
//   exact          sqrt_ abs_ round_even_ floor_ ceil_ trunc_ sign_ max_ min_ relu_ clamp_
//   two roundings  rsqrt_
//   libm's         erf_ sin_ cos_ atan_ pow_           one call per lane: they are rare in recurrent cells
//
// NaN, infinities, signed zeros and denormals come out as libm gives them. For NaN in sign_, max_, min_, relu_ and clamp_
// the meaning is torch's. Nothing here branches, changes the floating-point environment or needs -ffast-math, which would
// break the roundings by ROUND below. Whether the compiler contracts a * b + c to one rounding is left to it: the limits hold
// both ways.
//
// The polynomials were fitted for this file: least squares at Chebyshev nodes with Lawson's weights, 200 bits, the error of
// the whole function as the measure. "2^-28" beside one is that relative error before rounding.
#pragma once

#include "vector.hpp"

namespace elman {
namespace ELMAN_ISA {

template <class T>
struct Constants;

template <>
struct Constants<float> {
    static constexpr int MANTISSA = 23;                // bits behind the point
    static constexpr float BIAS = 127;                 // of the exponent
    static constexpr float ROUND = 0x1.8p23f;          // x + ROUND - ROUND is x rounded to an integer, for |x| < 2^22
    static constexpr float WHOLE = 0x1p23f;            // from here on every number is an integer
    static constexpr float INF = __builtin_inff();
    static constexpr float NOT = __builtin_nanf("");
    static constexpr float LOG2E = 0x1.715476p+0f;
    static constexpr float LN2_HIGH = 0x1.62ep-1f;     // 12 bits: n * LN2_HIGH is exact
    static constexpr float LN2_LOW = 0x1.0bfbe8p-15f;  // the rest
    static constexpr float EXP_LOW = -104, EXP_HIGH = 89;  // beyond these, exp is 0 and infinite
    static constexpr float EXPM1_LOW = -18;                // below, expm1 is -1
    static constexpr float TINY = 0x1p-25f;                // below, expm1(x) = log1p(x) = x
    static constexpr float TANH_HIGH = 9.25f;              // above, tanh is 1
    static constexpr float LIFT = 0x1p30f;                 // a factor that makes every denormal normal
    static constexpr float LIFT_BITS = 30;
    static constexpr float NORMAL = 0x1p-126f;             // the least normal number
    static constexpr int32_t ONE_BITS = 0x3f800000, SQRT_HALF_BITS = 0x3f3504f3, FRACTION = 0x007fffff;
};

template <>
struct Constants<double> {
    static constexpr int MANTISSA = 52;
    static constexpr double BIAS = 1023;
    static constexpr double ROUND = 0x1.8p52;
    static constexpr double WHOLE = 0x1p52;
    static constexpr double INF = __builtin_inf();
    static constexpr double NOT = __builtin_nan("");
    static constexpr double LOG2E = 0x1.71547652b82fep+0;
    static constexpr double LN2_HIGH = 0x1.62e42fefa2p-1;  // 40 bits
    static constexpr double LN2_LOW = 0x1.9ef35793c7673p-41;
    static constexpr double EXP_LOW = -746, EXP_HIGH = 710;
    static constexpr double EXPM1_LOW = -38;
    static constexpr double TINY = 0x1p-54;
    static constexpr double TANH_HIGH = 19.25;
    static constexpr double LIFT = 0x1p60;
    static constexpr double LIFT_BITS = 60;
    static constexpr double NORMAL = 0x1p-1022;
    static constexpr int64_t ONE_BITS = 0x3ff0000000000000, SQRT_HALF_BITS = 0x3fe6a09e667f3bcd;
    static constexpr int64_t FRACTION = 0x000fffffffffffff;
};

// ---- signs, comparisons ------------------------------------------------------------------------------------------------

template <class T>
INLINE Bits<T> sign_bit(Vec<T> x) {
    return bits_of<T>(x) & bits_of<T>(splat<T>(T(-0.0)));
}

template <class T>
INLINE Vec<T> abs_(Vec<T> x) {
    return from_bits<T>(bits_of<T>(x) & ~bits_of<T>(splat<T>(T(-0.0))));
}

// x with the sign of y, for an x without one.
template <class T>
INLINE Vec<T> with_sign(Vec<T> x, Vec<T> y) {
    return from_bits<T>(bits_of<T>(x) | sign_bit<T>(y));
}

// min(x, high) and max(x, low) for a constant that is no NaN; a NaN in x stays. One instruction on x86.
template <class T>
INLINE Vec<T> at_most(Vec<T> x, T high) {
    return select<T>(splat<T>(high) < x, splat<T>(high), x);
}

template <class T>
INLINE Vec<T> at_least(Vec<T> x, T low) {
    return select<T>(splat<T>(low) > x, splat<T>(low), x);
}

// torch.maximum, torch.minimum: a NaN on either side wins.
template <class T>
INLINE Vec<T> max_(Vec<T> x, Vec<T> y) {
    return select<T>((x < y) | (y != y), y, x);
}

template <class T>
INLINE Vec<T> min_(Vec<T> x, Vec<T> y) {
    return select<T>((x > y) | (y != y), y, x);
}

// torch.clamp: high wins over low, a NaN anywhere over both.
template <class T>
INLINE Vec<T> clamp_(Vec<T> x, Vec<T> low, Vec<T> high) {
    return min_<T>(max_<T>(x, low), high);
}

// torch.relu: NaN and -0 stay.
template <class T>
INLINE Vec<T> relu_(Vec<T> x) {
    return at_least<T>(x, T(0));
}

// torch.sign: 0 for NaN and for both zeros.
template <class T>
INLINE Vec<T> sign_(Vec<T> x) {
    return select<T>(x > T(0), splat<T>(1), select<T>(x < T(0), splat<T>(-1), splat<T>(0)));
}

// ---- integers ----------------------------------------------------------------------------------------------------------

// torch.round: to the nearest integer, halves to the even one. (SSE2 has no instruction for it.)
template <class T>
INLINE Vec<T> round_even_(Vec<T> x) {
    const T whole = Constants<T>::WHOLE;
    const Vec<T> a = abs_<T>(x);
    return with_sign<T>(select<T>(a < whole, (a + whole) - whole, a), x);
}

template <class T>
INLINE Vec<T> floor_(Vec<T> x) {
    const Vec<T> r = round_even_<T>(x);
    return select<T>(r > x, r - T(1), r);
}

template <class T>
INLINE Vec<T> ceil_(Vec<T> x) {
    const Vec<T> r = round_even_<T>(x);
    return with_sign<T>(select<T>(r < x, r + T(1), r), x);  // ceil(-0.7) is -0
}

template <class T>
INLINE Vec<T> trunc_(Vec<T> x) {
    return with_sign<T>(floor_<T>(abs_<T>(x)), x);
}

// ---- roots -------------------------------------------------------------------------------------------------------------

INLINE float root(float x) {
    return __builtin_sqrtf(x);
}

INLINE double root(double x) {
    return __builtin_sqrt(x);
}

template <class T>
INLINE Vec<T> sqrt_(Vec<T> x) {
    Vec<T> y;
    for (int i = 0; i < LANES<T>; i++) y[i] = root(x[i]);  // GCC and Clang make one instruction of it
    return y;
}

template <class T>
INLINE Vec<T> rsqrt_(Vec<T> x) {
    return T(1) / sqrt_<T>(x);
}

// ---- exponentials ------------------------------------------------------------------------------------------------------

// c0 + z (c1 + z (c2 + ...))
template <class T>
INLINE Vec<T> polynomial(Vec<T>, T c) {
    return splat<T>(c);
}

template <class T, class... Rest>
INLINE Vec<T> polynomial(Vec<T> z, T c, Rest... rest) {
    return polynomial<T>(z, rest...) * z + c;
}

// 2^(n + more) for integers whose power is a normal number.
template <class T>
INLINE Vec<T> power_of_two(Vec<T> n, T more = 0) {
    typedef Constants<T> C;
    return from_bits<T>(bits_of<T>(n + (C::ROUND + (C::BIAS + more))) << C::MANTISSA);
}

// x = n ln 2 + r with an integer n and |r| <= ln 2 / 2.
template <class T>
struct Reduced {
    Vec<T> n, r;
};

template <class T>
INLINE Reduced<T> reduce(Vec<T> x) {
    typedef Constants<T> C;
    const Vec<T> n = (x * C::LOG2E + C::ROUND) - C::ROUND;
    return {n, (x - n * C::LN2_HIGH) - n * C::LN2_LOW};
}

// exp(r) - 1 - r for |r| <= ln 2 / 2. Even and odd terms apart: as many operations as in a row, half as deep.
INLINE Vec<float> exp_curve(Vec<float> r) {  // 2^-28
    const Vec<float> z = r * r;
    const Vec<float> even = polynomial<float>(z, 0x1.fffffcp-2f, 0x1.5558f4p-5f, 0x1.6a236p-10f);
    const Vec<float> odd = polynomial<float>(z, 0x1.555490p-3f, 0x1.123a2cp-7f);
    return z * (odd * r + even);
}

INLINE Vec<double> exp_curve(Vec<double> r) {  // 2^-57
    const Vec<double> z = r * r;
    const Vec<double> even = polynomial<double>(z, 0x1.000000000000ap-1, 0x1.5555555550825p-5, 0x1.6c16c1843d6e0p-10,
                                                0x1.a01999d70d3f2p-16, 0x1.28ada4ecef300p-22);
    const Vec<double> odd = polynomial<double>(z, 0x1.55555555554f9p-3, 0x1.1111111127cbdp-7, 0x1.a01a012a37d80p-13,
                                               0x1.71df2544d87fbp-19, 0x1.ad80033f35724p-26);
    return z * (odd * r + even);
}

template <class T>
INLINE Vec<T> exp_(Vec<T> x) {
    typedef Constants<T> C;
    const Reduced<T> x_ = reduce<T>(at_least<T>(at_most<T>(x, C::EXP_HIGH), C::EXP_LOW));
    const Vec<T> m = x_.r + exp_curve(x_.r);
    // 2^n in two factors: 2^128 is no float, and 2^-149 is no normal one.
    const Vec<T> half = (x_.n * T(0.5) + C::ROUND) - C::ROUND;
    const Vec<T> p = power_of_two<T>(half);
    return (p * m + p) * power_of_two<T>(x_.n - half);
}

template <class T>
INLINE Vec<T> expm1_(Vec<T> x) {
    typedef Constants<T> C;
    const Reduced<T> x_ = reduce<T>(at_least<T>(at_most<T>(x, C::EXP_HIGH), C::EXPM1_LOW));
    // 2^n (1 + r + curve) - 1, by half: 2^128 is no float. The largest terms first, for they cancel where n is 1.
    const Vec<T> p = power_of_two<T>(x_.n, T(-1));
    const Vec<T> half = p * exp_curve(x_.r) + (p * x_.r + (p - T(0.5)));
    return select<T>(abs_<T>(x) < C::TINY, x, half + half);
}

// 1 / (1 + exp(-|x|)), or exp(-|x|) times that on the left: nothing overflows, and the far left ends in denormals.
template <class T>
INLINE Vec<T> sigmoid_(Vec<T> x) {
    typedef Constants<T> C;
    const Reduced<T> x_ = reduce<T>(-at_most<T>(abs_<T>(x), -C::EXP_LOW));
    const Vec<T> m = x_.r + exp_curve(x_.r);
    const Vec<T> lifted = power_of_two<T>(x_.n, C::LIFT_BITS);
    const Vec<T> p = lifted * (1 / C::LIFT);
    const Vec<T> below = p * m + (p + T(1));
    const Vec<T> e = lifted * m + lifted;
    const Bits<T> left = x < T(0);
    const Vec<T> q = select<T>(left, e * (1 / C::LIFT), splat<T>(1)) / below;
    // What rounding took from numerator and denominator goes back in at the end: three roundings are one too many.
    const Vec<T> lost_below = p * m + (p - (below - T(1)));
    const Vec<T> lost_above = select<T>(left, (lifted * m - (e - lifted)) * (1 / C::LIFT), Vec<T>{});
    return q + (lost_above - q * lost_below) * select<T>(left, T(1) - q, q);
}

// exp(2a) + 1 for 0 <= a <= TANH_HIGH.
template <class T>
INLINE Vec<T> exp_twice_plus_1(Vec<T> a) {
    const Reduced<T> a_ = reduce<T>(a + a);
    const Vec<T> p = power_of_two<T>(a_.n);
    return p * (a_.r + exp_curve(a_.r)) + (p + T(1));
}

// For |x| < 0.625 an odd polynomial (2^-28), else 1 - 2 / (exp(2|x|) + 1).
INLINE Vec<float> tanh_of(Vec<float> x) {
    const Vec<float> a = abs_<float>(x), z = a * a;
    const Vec<float> q = polynomial<float>(z, -0x1.555532p-2f, 0x1.110726p-3f, -0x1.b83c36p-5f, 0x1.5225c6p-6f,
                                           -0x1.75de6ap-8f);
    const Vec<float> d = exp_twice_plus_1<float>(at_most<float>(a, Constants<float>::TANH_HIGH));
    return with_sign<float>(select<float>(a < 0.625f, (a * z) * q + a, 1.0f - 2.0f / d), x);
}

// The same with a rational function (2^-60) in place of the polynomial; both ways share one division.
INLINE Vec<double> tanh_of(Vec<double> x) {
    const Vec<double> a = at_most<double>(abs_<double>(x), Constants<double>::TANH_HIGH), z = a * a;
    const Vec<double> p = polynomial<double>(z, -0x1.93ac07a3a495dp+10, -0x1.8d26a4763e94fp+6, -0x1.edc5baddb1f12p-1);
    const Vec<double> q = polynomial<double>(z, 0x1.2ec105babb708p+12, 0x1.176fa40078945p+11, 0x1.c33f2c858346ap+6, 1.0);
    const Bits<double> small = a < 0.625;
    const Vec<double> above = select<double>(small, (a * z) * p, splat<double>(-2));
    const Vec<double> below = select<double>(small, q, exp_twice_plus_1<double>(a));
    return with_sign<double>(select<double>(small, a, splat<double>(1)) + above / below, x);
}

template <class T>
INLINE Vec<T> tanh_(Vec<T> x) {
    return tanh_of(x);
}

// ---- logarithms --------------------------------------------------------------------------------------------------------

// x = 2^k m with sqrt(1/2) <= m < sqrt(2), for a positive normal x. (Beyond those: something.)
template <class T>
struct Split {
    Vec<T> k, m;
};

template <class T>
INLINE Split<T> split(Vec<T> x) {
    typedef Constants<T> C;
    typedef typename VectorOf<T>::unsigned_bits Unsigned;
    // Unsigned: what a NaN comes to does not fit.
    const Unsigned sum = (Unsigned)bits_of<T>(x) + (Unsigned)(Bits<T>{} + (C::ONE_BITS - C::SQRT_HALF_BITS));
    const Bits<T> b = (Bits<T>)sum, exponent = (Bits<T>)(sum >> C::MANTISSA);
    return {from_bits<T>(exponent + bits_of<T>(splat<T>(C::ROUND))) - (C::ROUND + C::BIAS),
            from_bits<T>((b & C::FRACTION) + C::SQRT_HALF_BITS)};
}

// (log((1 + s) / (1 - s)) / s - 2) for z = s^2, |s| <= 0.1716.
INLINE Vec<float> log_curve(Vec<float> z) {  // 2^-37
    return z * polynomial<float>(z, 0x1.555554p-1f, 0x1.999a7cp-2f, 0x1.2438a6p-2f, 0x1.e2fe2cp-3f);
}

INLINE Vec<double> log_curve(Vec<double> z) {  // 2^-59
    return z * polynomial<double>(z, 0x1.5555555555593p-1, 0x1.999999997fab4p-2, 0x1.249249421d553p-2,
                                  0x1.c71c51e3fdc0ap-3, 0x1.746646e4f8d07p-3, 0x1.39a0e4402638bp-3,
                                  0x1.2f0e29225c691p-3);
}

// k ln 2 + log(1 + f) + rest, sqrt(1/2) <= 1 + f < sqrt(2). With s = f / (2 + f), log(1 + f) = f - f^2/2 + s (f^2/2 + curve).
template <class T>
INLINE Vec<T> log_sum(Vec<T> k, Vec<T> f, Vec<T> rest) {
    typedef Constants<T> C;
    const Vec<T> s = f / (f + T(2));
    const Vec<T> h = f * f * T(0.5);
    return k * C::LN2_HIGH - ((h - (s * (h + log_curve(s * s)) + (k * C::LN2_LOW + rest))) - f);
}

// y where 0 < x < infinity, else what log gives there.
template <class T>
INLINE Vec<T> log_edges(Vec<T> x, Vec<T> y) {
    typedef Constants<T> C;
    const Vec<T> edge = select<T>(x == T(0), splat<T>(-C::INF), select<T>(x < T(0), splat<T>(C::NOT), x));
    return select<T>((x > T(0)) & (x < C::INF), y, edge);
}

template <class T>
INLINE Vec<T> log_(Vec<T> x) {
    typedef Constants<T> C;
    const Bits<T> denormal = x < C::NORMAL;
    const Split<T> x_ = split<T>(select<T>(denormal, x * C::LIFT, x));
    const Vec<T> k = x_.k - select<T>(denormal, splat<T>(C::LIFT_BITS), splat<T>(0));
    return log_edges<T>(x, log_sum<T>(k, x_.m - T(1), splat<T>(0)));
}

template <class T>
INLINE Vec<T> log1p_(Vec<T> x) {
    typedef Constants<T> C;
    const Vec<T> u = x + T(1);
    const Split<T> u_ = split<T>(u);
    // What the rounding of 1 + x lost, in terms of the logarithm. Near 0, x itself is f and nothing is lost.
    const Vec<T> lost = select<T>(x > T(1), T(1) - (u - x), x - (u - T(1))) / u;
    const Bits<T> near = u_.k == T(0);
    const Vec<T> y = log_sum<T>(u_.k, select<T>(near, x, u_.m - T(1)), select<T>(near, splat<T>(0), lost));
    return select<T>(abs_<T>(x) < C::TINY, x, log_edges<T>(u, y));
}

// ---- libm's, one lane after another ------------------------------------------------------------------------------------

#define LANEWISE(name)                                              \
    INLINE float name##_lane(float x) {                             \
        return __builtin_##name##f(x);                              \
    }                                                               \
    INLINE double name##_lane(double x) {                           \
        return __builtin_##name(x);                                 \
    }                                                               \
    template <class T>                                              \
    INLINE Vec<T> name##_(Vec<T> x) {                               \
        for (int i = 0; i < LANES<T>; i++) x[i] = name##_lane(x[i]); \
        return x;                                                   \
    }

LANEWISE(erf)
LANEWISE(sin)
LANEWISE(cos)
LANEWISE(atan)
#undef LANEWISE

INLINE float pow_lane(float x, float y) {
    return __builtin_powf(x, y);
}

INLINE double pow_lane(double x, double y) {
    return __builtin_pow(x, y);
}

template <class T>
INLINE Vec<T> pow_(Vec<T> x, Vec<T> y) {
    for (int i = 0; i < LANES<T>; i++) x[i] = pow_lane(x[i], y[i]);
    return x;
}

}  // namespace ELMAN_ISA
}  // namespace elman
