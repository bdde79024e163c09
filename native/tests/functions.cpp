// Checks the vector type, the elementary functions and the packed product, without Python: exit code 1 if any fails.
//
//   g++ -O3 -std=c++17 -fno-math-errno -fno-trapping-math -mavx2 -mfma -DELMAN_ISA=avx2 -I native native/tests/functions.cpp
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "functions.hpp"
#include "products.hpp"

using namespace elman::ELMAN_ISA;

namespace {

int failures = 0;

void check(bool right, const char* what, double got = 0, double want = 0) {
    if (right) return;
    failures++;
    printf("WRONG  %s: %a (%g), not %a (%g)\n", what, got, got, want, want);
}

template <class T>
bool same(T a, T b) {
    return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

// One lane at a time, in every lane: a result must not depend on where it stands.
template <class T, class F>
T in_lanes(F f, T x, const char* what) {
    T first = 0;
    for (int lane = 0; lane < LANES<T>; lane++) {
        Vec<T> v = splat<T>(T(0.3));
        v[lane] = x;
        const T made = f(v)[lane];
        if (lane == 0) first = made;
        check(std::memcmp(&made, &first, sizeof made) == 0 || std::isnan(made), what, made, first);
    }
    return first;
}

template <class T>
struct Special {
    T x, exp, tanh, sigmoid, log, log1p, relu, sign;
};

template <class T>
void functions(const char* type) {
    const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    const T tiny = std::numeric_limits<T>::denorm_min();
    const Special<T> specials[] = {
        {nan, nan, nan, nan, nan, nan, nan, 0}, {inf, inf, 1, 1, inf, inf, inf, 1}, {-inf, 0, -1, 0, nan, nan, 0, -1},
        {T(0), 1, T(0), T(0.5), -inf, T(0), T(0), 0}, {T(-0.0), 1, T(-0.0), T(0.5), -inf, T(-0.0), T(0), 0},
        {tiny, 1, tiny, T(0.5), std::log(tiny), tiny, tiny, 1}, {-tiny, 1, -tiny, T(0.5), nan, -tiny, T(0), -1},
    };
    for (const auto& s : specials) {
        const auto equal = [&](T got, T want, const char* what, bool sign = true) {
            check(sign ? same(got, want) : (std::isnan(got) && std::isnan(want)) || got == want, what, got, want);
        };
        equal(in_lanes<T>(exp_<T>, s.x, "exp"), s.exp, "exp");
        equal(in_lanes<T>(tanh_<T>, s.x, "tanh"), s.tanh, "tanh");
        equal(in_lanes<T>(sigmoid_<T>, s.x, "sigmoid"), s.sigmoid, "sigmoid");
        equal(in_lanes<T>(log_<T>, s.x, "log"), s.log, "log");
        equal(in_lanes<T>(log1p_<T>, s.x, "log1p"), s.log1p, "log1p");
        equal(in_lanes<T>(relu_<T>, s.x, "relu"), s.relu, "relu", false);
        equal(in_lanes<T>(sign_<T>, s.x, "sign"), s.sign, "sign", false);
        equal(in_lanes<T>(sqrt_<T>, s.x, "sqrt"), std::sqrt(s.x), "sqrt");
        equal(in_lanes<T>(abs_<T>, s.x, "abs"), std::fabs(s.x), "abs");
        equal(in_lanes<T>(floor_<T>, s.x, "floor"), std::floor(s.x), "floor");
        equal(in_lanes<T>(ceil_<T>, s.x, "ceil"), std::ceil(s.x), "ceil");
        equal(in_lanes<T>(round_even_<T>, s.x, "round"), std::nearbyint(s.x), "round");
    }
    for (const T x : {T(0.5), T(1.5), T(2.5), T(-0.5), T(-1.5), T(1e10), T(-7.3), T(7.9)}) {
        check(same(in_lanes<T>(round_even_<T>, x, "round"), std::nearbyint(x)), "round", x);
        check(same(in_lanes<T>(trunc_<T>, x, "trunc"), std::trunc(x)), "trunc", x);
    }
    // As torch: NaN wins.
    check(std::isnan(max_<T>(splat<T>(nan), splat<T>(1))[0]) && std::isnan(max_<T>(splat<T>(1), splat<T>(nan))[0]), "max of NaN");
    check(std::isnan(min_<T>(splat<T>(nan), splat<T>(1))[0]) && std::isnan(min_<T>(splat<T>(1), splat<T>(nan))[0]), "min of NaN");
    // A sweep against the C library in higher precision, with the limits that docs/native.md names.
    struct {
        const char* name;
        Vec<T> (*ours)(Vec<T>);
        long double (*right)(long double);
        T low, high;
    } const sweeps[] = {
        {"exp", exp_<T>, [](long double x) { return std::exp(x); }, -104, 89},
        {"expm1", expm1_<T>, [](long double x) { return std::expm1(x); }, -20, 88},
        {"tanh", tanh_<T>, [](long double x) { return std::tanh(x); }, -12, 12},
        {"sigmoid", sigmoid_<T>, [](long double x) { return 1 / (1 + std::exp(-x)); }, -103, 40},
        {"log", log_<T>, [](long double x) { return std::log(x); }, T(1e-6), 1000},
        {"log1p", log1p_<T>, [](long double x) { return std::log1p(x); }, T(-0.999), 1000},
    };
    const int digits = std::numeric_limits<T>::digits, least = std::numeric_limits<T>::min_exponent - 1;
    for (const auto& sweep : sweeps) {
        double worst = 0, where = 0;
        for (int i = 0; i <= 40000; i++) {
            const T x = sweep.low + (sweep.high - sweep.low) * T(i) / T(40000);
            const long double want = sweep.right(x);
            const T got = sweep.ours(splat<T>(x))[0];
            if (std::isinf(T(want)) || T(want) == 0) {
                check(same(got, T(want)), sweep.name, got, double(want));
                continue;
            }
            int exponent = std::ilogb(want);
            if (exponent < least) exponent = least;
            const double error = double(std::fabs(std::ldexp((long double)got - want, digits - 1 - exponent)));
            if (error > worst) worst = error, where = x;
        }
        check(worst <= 2, sweep.name, worst, 2);
        printf("%-7s %-8s at most %.2f ulp in the sweep, at %g\n", type, sweep.name, worst, where);
    }
}

template <class T>
void vectors() {
    constexpr int L = LANES<T>;
    T from[3 * L], to[3 * L];
    for (int i = 0; i < 3 * L; i++) from[i] = T(i + 1), to[i] = -1;
    store<T>(to + 1, load<T>(from + 1));
    for (int i = 0; i < 3 * L; i++) check(to[i] == (i >= 1 && i < 1 + L ? T(i + 1) : T(-1)), "load and store", to[i]);
    for (int n = 1; n < L; n++) {
        const Vec<T> v = load_part<T>(from, n);
        for (int i = 0; i < L; i++) check(v[i] == (i < n ? T(i + 1) : T(0)), "load_part", v[i]);
        for (T& x : to) x = -1;
        store_part<T>(to, load<T>(from), n);
        for (int i = 0; i < 3 * L; i++) check(to[i] == (i < n ? T(i + 1) : T(-1)), "store_part", to[i]);
    }
    check(std::signbit(splat<T>(T(-0.0))[L - 1]), "splat of a negative zero");
    const Vec<T> a = load<T>(from), b = splat<T>(T(2));
    const Vec<T> chosen = select<T>(a > b, a, b);
    for (int i = 0; i < L; i++) check(chosen[i] == (from[i] > 2 ? from[i] : T(2)), "select", chosen[i]);
}

template <class T>
void products(const char* type) {
    const int64_t sizes[] = {1, 7, 15, 16, 17, 33, 130};
    int64_t state = 1;
    const auto number = [&] { return T((state = state * 6364136223846793005 + 1442695040888963407) >> 40) / T(1 << 23); };
    for (const int64_t K : {1, 7, 64})
        for (const int64_t N : sizes)
            for (int64_t rows = 1; rows <= 14; rows++)
                for (int kind = 0; kind < 3; kind++) {  // start: none, one row for all, one for each
                    const int64_t lda = K + 3, ldo = N + 5;
                    std::vector<T> a(std::size_t(rows * lda)), w(std::size_t(K * N)), start(std::size_t(rows * N)), out(std::size_t(rows * ldo), T(77));
                    for (auto* v : {&a, &w, &start})
                        for (T& x : *v) x = number();
                    std::vector<T> packed(std::size_t((N + PANEL<T> - 1) / PANEL<T> * PANEL<T> * K), T(NAN));
                    const bool turned = rows % 2;  // the weight as [N, K]
                    const int64_t sk = turned ? 1 : N, sn = turned ? K : 1;
                    pack<T>(w.data(), sk, sn, K, N, packed.data());
                    const int64_t middle = N / PANEL<T> / 2 * PANEL<T>;  // in two ranges of columns
                    for (int part = 0; part < 2; part++)
                        product<T>(a.data(), lda, packed.data(), K, kind ? start.data() : nullptr, kind == 2 ? N : 0, out.data(), ldo, rows,
                                   part ? middle : 0, part ? N : middle);
                    std::vector<T> alone(std::size_t(N + 1), T(77));
                    for (int64_t r = 0; r < rows; r++) {
                        for (int64_t n = 0; n < N; n++) {
                            double want = kind ? double(start[std::size_t((kind == 2 ? r * N : 0) + n)]) : 0, size = std::fabs(want);
                            for (int64_t k = 0; k < K; k++) {
                                const double term = double(a[std::size_t(r * lda + k)]) * double(w[std::size_t(k * sk + n * sn)]);
                                want += term, size += std::fabs(term);
                            }
                            const T got = out[std::size_t(r * ldo + n)];
                            check(std::fabs(double(got) - want) <= 4 * double(K + 1) * double(std::numeric_limits<T>::epsilon()) * size, "product", got, want);
                        }
                        for (int64_t n = N; n < ldo; n++) check(out[std::size_t(r * ldo + n)] == T(77), "beyond a product's row", out[std::size_t(r * ldo + n)]);
                        product<T>(a.data() + r * lda, lda, packed.data(), K, kind ? start.data() + (kind == 2 ? r * N : 0) : nullptr, 0, alone.data(), N, 1, 0, N);
                        check(!std::memcmp(alone.data(), out.data() + r * ldo, std::size_t(N) * sizeof(T)), "a row alone has other bits");
                        check(alone[std::size_t(N)] == T(77), "beyond a row alone");
                    }
                }
    printf("%-7s products\n", type);
}

}  // namespace

int main() {
    vectors<float>();
    vectors<double>();
    functions<float>("float");
    functions<double>("double");
    products<float>("float");
    products<double>("double");
    printf(failures ? "%d checks failed\n" : "all right\n", failures);
    return failures != 0;
}
