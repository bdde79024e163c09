// Checks vector.hpp and functions.hpp for one instruction set; prints a line per check, and ends with 1 if one failed.
//
//   g++ -O3 -std=c++17 -fno-math-errno -fno-trapping-math -mavx2 -mfma -DELMAN_ISA=avx2 -Inative native/tests/functions.cpp
//
// `./a.out 0.1` takes a tenth of the samples, for a slow machine.
#include "functions.hpp"

#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace elman::ELMAN_ISA;

namespace {

int failures = 0;

void report(bool good, const char* type, const char* what, const char* detail = "") {
    printf("%-4s %-6s %s %s\n", good ? "ok" : "FAIL", type, what, detail);
    if (!good) failures++;
}

template <class T>
struct Type;
template <>
struct Type<float> {
    typedef double wide;  // more than twice the digits
    typedef uint32_t word;
    static constexpr const char* NAME = "float";
    static constexpr int DIGITS = 24, LEAST = -149;
    static constexpr float DENORMAL = 0x1p-149f, NORMAL = 0x1p-126f, MOST = 0x1.fffffep127f;
};
template <>
struct Type<double> {
    typedef long double wide;
    typedef uint64_t word;
    static constexpr const char* NAME = "double";
    static constexpr int DIGITS = 53, LEAST = -1074;
    static constexpr double DENORMAL = 0x1p-1074, NORMAL = 0x1p-1022, MOST = 0x1.fffffffffffffp1023;
};
template <class T>
using Wide = typename Type<T>::wide;

template <class T>
bool same_bits(T a, T b) {
    return !memcmp(&a, &b, sizeof a);
}

// The same value: any NaN equals any NaN, but 0 is not -0.
template <class T>
bool same(T a, T b) {
    return (std::isnan(a) && std::isnan(b)) || same_bits(a, b);
}

// Infinity where one is special (NaN, infinite, a zero's sign) and the other is not so.
template <class T>
double error_in_ulp(T got, Wide<T> want) {
    if (std::isnan(want) || std::isnan(got)) return std::isnan(want) && std::isnan(got) ? 0 : INFINITY;
    if (std::isinf(T(want)) || std::isinf(got)) return T(want) == got ? 0 : INFINITY;
    if (want == 0) return got == 0 && std::signbit(got) == std::signbit(want) ? 0 : INFINITY;
    int exponent = std::ilogb(want) - (Type<T>::DIGITS - 1);
    if (exponent < Type<T>::LEAST) exponent = Type<T>::LEAST;
    return double(std::ldexp(std::fabs(Wide<T>(got) - want), -exponent));
}

uint64_t draw() {  // splitmix64: the same on every machine
    static uint64_t state = 1;
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

// Three kinds in turn: any bit pattern (NaN and infinities among them), magnitudes of 2^-40 to 2^11, and -20 to 20.
template <class T>
T sample(int kind) {
    const uint64_t word = draw();
    const double unit = double(word >> 11) * 0x1p-53;
    if (kind % 3 == 0) {
        const typename Type<T>::word bits = typename Type<T>::word(word);
        T x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    if (kind % 3 == 1) return T(std::ldexp(word & 1 ? 1 + unit : -1 - unit, int((word >> 1) % 51) - 40));
    return T(unit * 40 - 20);
}

template <class T>
struct One {
    const char* name;
    Vec<T> (*ours)(Vec<T>);
    Wide<T> (*want)(Wide<T>);
    double limit;  // ulp; 0.5 is correctly rounded
};

template <class T>
struct Two {
    const char* name;
    Vec<T> (*ours)(Vec<T>, Vec<T>);
    T (*want)(T, T);  // to the bit
};

// The reference of f: an expression in x of type Wide<T>.
#define ONE(name, limit, expression)                                                                  \
    {                                                                                                 \
        #name, [](Vec<T> v) { return name<T>(v); }, [](Wide<T> x) -> Wide<T> { return expression; }, limit \
    }

template <class T>
const One<T> FUNCTIONS[] = {
    ONE(exp_, 2, std::exp(x)),
    ONE(expm1_, 2, std::expm1(x)),
    ONE(tanh_, 2, std::tanh(x)),
    ONE(sigmoid_, 2, x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x))),
    ONE(log_, 2, std::log(x)),
    ONE(log1p_, 2, std::log1p(x)),
    ONE(sqrt_, 0.501, std::sqrt(x)),  // the long double reference is rounded too
    ONE(rsqrt_, 1.501, 1 / std::sqrt(x)),
    ONE(abs_, 0, std::fabs(x)),
    ONE(round_even_, 0, std::nearbyint(x)),
    ONE(floor_, 0, std::floor(x)),
    ONE(ceil_, 0, std::ceil(x)),
    ONE(trunc_, 0, std::trunc(x)),
    ONE(sign_, 0, Wide<T>((x > 0) - (x < 0))),
    ONE(relu_, 0, x < 0 ? 0 : x),
    ONE(erf_, 2, std::erf(x)),
    ONE(sin_, 2, std::sin(x)),
    ONE(cos_, 2, std::cos(x)),
    ONE(atan_, 2, std::atan(x)),
};

template <class T>
const Two<T> PAIRS[] = {
    {"max_", [](Vec<T> a, Vec<T> b) { return max_<T>(a, b); },
     [](T a, T b) { return std::isnan(a) ? a : std::isnan(b) || a < b ? b : a; }},
    {"min_", [](Vec<T> a, Vec<T> b) { return min_<T>(a, b); },
     [](T a, T b) { return std::isnan(a) ? a : std::isnan(b) || a > b ? b : a; }},
    {"pow_", [](Vec<T> a, Vec<T> b) { return pow_<T>(a, b); }, [](T a, T b) { return T(std::pow(a, b)); }},
};

template <class T>
void check_memory() {
    constexpr int N = LANES<T>;
    T from[N + 1], to[3 * N];
    for (int i = 0; i <= N; i++) from[i] = T(i + 1);
    for (int offset = 0; offset < 2; offset++) {  // offset 1: not aligned
        for (T& x : to) x = T(-7);
        store<T>(to + offset, load<T>(from + offset));
        bool good = true;
        for (int i = 0; i < 3 * N; i++) good &= to[i] == (i >= offset && i < offset + N ? from[i] : T(-7));
        report(good, Type<T>::NAME, offset ? "load and store, not aligned" : "load and store");
    }
    bool loads = true, stores = true;
    for (int n = 1; n < N; n++) {
        const Vec<T> v = load_part<T>(from, n);
        for (int i = 0; i < N; i++) loads &= same_bits<T>(v[i], i < n ? from[i] : T(0));
        for (T& x : to) x = T(-7);
        store_part<T>(to + 1, load<T>(from), n);
        for (int i = 0; i < 3 * N; i++) stores &= to[i] == (i >= 1 && i < 1 + n ? from[i - 1] : T(-7));
    }
    report(loads, Type<T>::NAME, "load_part");
    report(stores, Type<T>::NAME, "store_part");

    bool splats = true, selects = true, patterns = true;
    const T specials[] = {T(0), T(-0.0), T(1.5), T(INFINITY), T(-INFINITY), T(NAN), Type<T>::DENORMAL};
    for (T s : specials) {
        const Vec<T> v = splat<T>(s);
        for (int i = 0; i < N; i++) splats &= same<T>(v[i], s);
        const Vec<T> back = from_bits<T>(bits_of<T>(v));
        for (int i = 0; i < N; i++) patterns &= same_bits<T>(back[i], v[i]);
        // A mask of every second lane.
        Bits<T> mask = {};
        for (int i = 0; i < N; i++) mask[i] = i % 2 ? -1 : 0;
        const Vec<T> chosen = select<T>(mask, v, load<T>(from));
        for (int i = 0; i < N; i++) selects &= same<T>(chosen[i], i % 2 ? s : from[i]);
    }
    report(splats, Type<T>::NAME, "splat");
    report(patterns, Type<T>::NAME, "bits_of and from_bits");
    report(selects, Type<T>::NAME, "select");
}

// Values where functions tend to go wrong, each in every lane among others: accurate, and the same bits in each place.
template <class T>
void check_edges() {
    typedef Type<T> K;
    constexpr int N = LANES<T>;
    const bool single = sizeof(T) == 4;
    const T overflow = T(std::log(Wide<T>(K::MOST))), underflow = T(std::log(Wide<T>(K::DENORMAL)));
    const T magnitudes[] = {
        T(0), K::DENORMAL, 3 * K::DENORMAL, 12345 * K::DENORMAL, std::nextafter(K::NORMAL, T(0)), K::NORMAL, 2 * K::NORMAL,
        T(1e-30), T(1e-12), T(0x1p-54), T(0x1p-53), T(0x1p-26), T(0x1p-25), std::nextafter(T(0x1p-25), T(0)), T(0x1p-24), T(1e-4),
        T(0.25), T(0.29), T(0.2928932188134524), T(0.3), T(0.34657359), T(0.4), T(0.41421356), T(0.42), T(0.5),
        std::nextafter(T(0.5), T(0)), std::nextafter(T(0.5), T(1)), T(0.6), T(0.625), std::nextafter(T(0.625), T(0)), T(0.69314718),
        T(0.70710678), T(0.75), std::nextafter(T(1), T(0)), T(1), std::nextafter(T(1), T(2)), T(1.4142135), T(1.5), T(2), T(2.5),
        T(3), T(3.5), T(8.99), T(9.01), T(9.1), T(9.25), T(9.3), T(17), T(17.4), T(18), T(19), T(19.06), T(19.1), T(20), T(36), T(37),
        T(38), T(39), T(44), T(50), T(86), T(87), T(87.33), T(87.34), T(88), T(88.5), T(88.72), T(88.7228), T(88.73), T(89), T(90), T(100),
        T(103), T(103.9), T(103.97), T(103.98), T(104), T(105), T(150), T(200), T(700), T(708), T(708.4), T(709), T(709.7), T(709.78),
        T(709.79), T(710), T(744), T(745), T(745.1), T(745.13), T(745.14), T(746), T(747), T(1000), T(4194303.5), T(4194304.5), T(8388607.5),
        T(8388608), T(8388609), T(16777216), T(4503599627370495.5), T(4503599627370496), T(1e10), T(1e20), T(1e30), K::MOST,
        overflow, std::nextafter(overflow, T(0)), std::nextafter(overflow, T(INFINITY)), -underflow,
        std::nextafter(-underflow, T(0)), std::nextafter(-underflow, T(INFINITY)), T(INFINITY), T(NAN)};
    for (const One<T>& f : FUNCTIONS<T>) {
        double most = 0;
        T where = 0;
        bool steady = true;
        for (T magnitude : magnitudes)
            for (int negative = 0; negative < 2; negative++) {
                const T x = negative ? -magnitude : magnitude;
                // On glibc and others, libm's own error for huge arguments is not ours to test.
                const Vec<T> alone = f.ours(splat<T>(x));
                const double error = error_in_ulp<T>(alone[0], f.want(Wide<T>(x)));
                if (!(error <= most)) most = error, where = x;
                for (int place = 0; place < N; place++) {
                    Vec<T> v;
                    for (int i = 0; i < N; i++) v[i] = i == place ? x : sample<T>(i + place);
                    const Vec<T> y = f.ours(v);
                    steady &= same<T>(y[place], alone[0]);
                }
            }
        char detail[100];
        snprintf(detail, sizeof detail, "%.3f ulp at %a = %g", most, double(where), double(where));
        char what[60];
        snprintf(what, sizeof what, "%-12s edges:", f.name);
        report(most <= f.limit, K::NAME, what, detail);
        snprintf(what, sizeof what, "%-12s the same in each lane, whatever the others are", f.name);
        report(steady, K::NAME, what);
    }
    for (const Two<T>& f : PAIRS<T>) {
        bool good = true;
        for (T a : magnitudes)
            for (T b : magnitudes)
                for (int signs = 0; signs < 4; signs++) {
                    const T x = signs & 1 ? -a : a, y = signs & 2 ? -b : b;
                    Vec<T> u, v;
                    for (int i = 0; i < N; i++) u[i] = i % 2 ? x : T(1), v[i] = i % 2 ? y : T(2);
                    const Vec<T> got = f.ours(u, v);
                    for (int i = 0; i < N; i++) good &= same<T>(got[i], i % 2 ? f.want(x, y) : f.want(T(1), T(2)));
                }
        char what[60];
        snprintf(what, sizeof what, "%-12s edges", f.name);
        report(good, K::NAME, what);
    }
    (void)single;
}

template <class T>
struct Case {
    const char* name;
    Vec<T> (*ours)(Vec<T>);
    T x, want;  // to the bit
};

#define CASE(name, x, want)                                                \
    {                                                                      \
        #name, [](Vec<T> v) { return name<T>(v); }, T(x), T(want)           \
    }

// What must hold to the bit, written out so that no reference can be wrong about it.
template <class T>
void check_table() {
    const T tiny = Type<T>::DENORMAL, inf = T(INFINITY), nan = T(NAN);
    const Case<T> cases[] = {
        CASE(tanh_, 0.0, 0.0), CASE(tanh_, -0.0, -0.0), CASE(tanh_, tiny, tiny), CASE(tanh_, -7 * tiny, -7 * tiny),
        CASE(tanh_, inf, 1), CASE(tanh_, -inf, -1), CASE(tanh_, nan, nan), CASE(tanh_, 25, 1), CASE(tanh_, -25, -1),
        CASE(sigmoid_, 0.0, 0.5), CASE(sigmoid_, -0.0, 0.5), CASE(sigmoid_, inf, 1), CASE(sigmoid_, -inf, 0.0),
        CASE(sigmoid_, nan, nan), CASE(sigmoid_, tiny, 0.5), CASE(sigmoid_, 50, 1), CASE(sigmoid_, -800, 0.0),
        CASE(exp_, 0.0, 1), CASE(exp_, -0.0, 1), CASE(exp_, inf, inf), CASE(exp_, -inf, 0.0), CASE(exp_, nan, nan),
        CASE(exp_, 800, inf), CASE(exp_, -800, 0.0), CASE(exp_, tiny, 1), CASE(exp_, -tiny, 1),
        CASE(expm1_, 0.0, 0.0), CASE(expm1_, -0.0, -0.0), CASE(expm1_, tiny, tiny), CASE(expm1_, -3 * tiny, -3 * tiny),
        CASE(expm1_, inf, inf), CASE(expm1_, -inf, -1), CASE(expm1_, nan, nan), CASE(expm1_, 800, inf), CASE(expm1_, -800, -1),
        CASE(log_, 0.0, -inf), CASE(log_, -0.0, -inf), CASE(log_, 1, 0.0), CASE(log_, -1, nan), CASE(log_, -inf, nan),
        CASE(log_, inf, inf), CASE(log_, nan, nan), CASE(log_, -tiny, nan),
        CASE(log1p_, 0.0, 0.0), CASE(log1p_, -0.0, -0.0), CASE(log1p_, tiny, tiny), CASE(log1p_, -3 * tiny, -3 * tiny),
        CASE(log1p_, -1, -inf), CASE(log1p_, -1.5, nan), CASE(log1p_, inf, inf), CASE(log1p_, -inf, nan), CASE(log1p_, nan, nan),
        CASE(sqrt_, -0.0, -0.0), CASE(sqrt_, 9, 3), CASE(sqrt_, -1, nan), CASE(sqrt_, inf, inf),
        CASE(rsqrt_, 0.0, inf), CASE(rsqrt_, -0.0, -inf), CASE(rsqrt_, 4, 0.5), CASE(rsqrt_, inf, 0.0), CASE(rsqrt_, -1, nan),
        CASE(abs_, -0.0, 0.0), CASE(abs_, -inf, inf), CASE(abs_, nan, nan), CASE(abs_, -tiny, tiny),
        CASE(round_even_, 0.5, 0.0), CASE(round_even_, 1.5, 2), CASE(round_even_, 2.5, 2), CASE(round_even_, -0.4, -0.0),
        CASE(round_even_, -0.5, -0.0), CASE(round_even_, -1.5, -2), CASE(round_even_, nan, nan), CASE(round_even_, -inf, -inf),
        CASE(floor_, -0.0, -0.0), CASE(floor_, 0.7, 0.0), CASE(floor_, -tiny, -1), CASE(floor_, nan, nan), CASE(floor_, inf, inf),
        CASE(ceil_, -0.7, -0.0), CASE(ceil_, tiny, 1), CASE(ceil_, -0.0, -0.0), CASE(ceil_, nan, nan), CASE(ceil_, -1.5, -1),
        CASE(trunc_, -0.7, -0.0), CASE(trunc_, 1.9, 1), CASE(trunc_, -1.9, -1), CASE(trunc_, nan, nan), CASE(trunc_, -inf, -inf),
        CASE(sign_, nan, 0.0), CASE(sign_, -0.0, 0.0), CASE(sign_, tiny, 1), CASE(sign_, -inf, -1),
        CASE(relu_, nan, nan), CASE(relu_, -0.0, -0.0), CASE(relu_, -tiny, 0.0), CASE(relu_, inf, inf), CASE(relu_, -inf, 0.0),
    };
    for (const Case<T>& c : cases) {
        const T got = c.ours(splat<T>(c.x))[0];
        if (!same<T>(got, c.want)) {
            char detail[100];
            snprintf(detail, sizeof detail, "(%g) is %a, not %a", double(c.x), double(got), double(c.want));
            report(false, Type<T>::NAME, c.name, detail);
        }
    }
    char detail[40];
    snprintf(detail, sizeof detail, "of %d values", int(sizeof cases / sizeof cases[0]));
    report(true, Type<T>::NAME, "table", detail);

    struct Clamped {
        T x, low, high, want;
    } clamped[] = {{5, 0, 1, 1},       {-5, 0, 1, 0},     {T(-0.0), 0, 1, T(-0.0)}, {nan, 0, 1, nan},      {1, 3, 2, 2},
                   {1, nan, 2, nan},   {1, 0, nan, nan},  {inf, -1, 1, 1},          {-inf, -inf, 1, -inf}, {T(0.5), 0, 1, T(0.5)}};
    bool good = true;
    for (const Clamped& c : clamped) good &= same<T>(clamp_<T>(splat<T>(c.x), splat<T>(c.low), splat<T>(c.high))[0], c.want);
    report(good, Type<T>::NAME, "clamp_");
}

template <class T>
void check_samples(long samples) {
    constexpr int N = LANES<T>;
    for (const One<T>& f : FUNCTIONS<T>) {
        double most = 0;
        T where = 0;
        for (long done = 0; done < samples; done += N) {
            Vec<T> x;
            for (int i = 0; i < N; i++) x[i] = sample<T>(int((done + i) % 3));
            const Vec<T> y = f.ours(x);
            for (int i = 0; i < N; i++) {
                const double error = error_in_ulp<T>(y[i], f.want(Wide<T>(x[i])));
                if (error > most) most = error, where = x[i];
            }
        }
        char detail[100], what[60];
        snprintf(detail, sizeof detail, "%.3f ulp at %a = %g", most, double(where), double(where));
        snprintf(what, sizeof what, "%-12s %ld samples:", f.name, samples);
        report(most <= f.limit, Type<T>::NAME, what, detail);
    }
}

}  // namespace

int main(int count, char** words) {
    const double share = count > 1 ? atof(words[1]) : 1;
    printf("%d bytes per vector\n", ELMAN_VECTOR_BYTES);
    check_memory<float>();
    check_memory<double>();
    check_table<float>();
    check_table<double>();
    check_edges<float>();
    check_edges<double>();
    check_samples<float>(long(share * 1.5e6));
    check_samples<double>(long(share * 3e5));
    // Nothing may have set flush-to-zero or another rounding.
    volatile float denormal = 0x1p-140f, half = 0.5f;
    report(denormal * half == 0x1p-141f && std::fegetround() == FE_TONEAREST, "", "the floating-point environment is as it was");
    printf("%s\n", failures ? "FAILED" : "all good");
    return failures ? 1 : 0;
}
