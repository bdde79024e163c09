// Measures the functions of functions.hpp: the largest and the mean error in ulp, or with --speed their time.
//
//   g++ -O3 -std=c++17 -fno-math-errno -fno-trapping-math -mavx2 -mfma -DELMAN_ISA=avx2 native/accuracy.cpp -o accuracy
//   ./accuracy [--stride N] [--speed]
//
// float: every N-th of the 2^32 inputs (all by default: some minutes) against double libm. double: 10^7 / N inputs, half
// uniform in [-20, 20] and half log-uniform (from 2^-60 to 2^11, and over all exponents), against long double libm. The reference's
// own rounding counts as nothing beside the float results, and as 2^-11 ulp beside the double ones where long double has 64
// bits. An error of infinity means: one is NaN or infinite and the other is not, or a zero has the wrong sign.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "functions.hpp"

using namespace elman::ELMAN_ISA;

namespace {

template <class T>
struct Wider;
template <>
struct Wider<float> {
    typedef double type;
    typedef uint32_t word;
    static constexpr int DIGITS = 24, LEAST = -149;
};
template <>
struct Wider<double> {
    typedef long double type;
    typedef uint64_t word;
    static constexpr int DIGITS = 53, LEAST = -1074;
};
template <class T>
using Wide = typename Wider<T>::type;

template <class T>
struct Function {
    const char* name;
    void (*ours)(const T*, T*, long);
    Wide<T> (*reference)(Wide<T>);
};

#define OURS(name)                                                                     \
    template <class T>                                                                 \
    void run_##name(const T* x, T* y, long n) {                                        \
        for (long i = 0; i < n; i += LANES<T>) store<T>(y + i, name##_<T>(load<T>(x + i))); \
    }
OURS(tanh)
OURS(sigmoid)
OURS(exp)
OURS(expm1)
OURS(log)
OURS(log1p)
#undef OURS

template <class W>
W sigmoid(W x) {
    return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

template <class T>
const Function<T> FUNCTIONS[] = {
    {"tanh", run_tanh<T>, [](Wide<T> x) { return std::tanh(x); }},
    {"sigmoid", run_sigmoid<T>, [](Wide<T> x) { return sigmoid(x); }},
    {"exp", run_exp<T>, [](Wide<T> x) { return std::exp(x); }},
    {"expm1", run_expm1<T>, [](Wide<T> x) { return std::expm1(x); }},
    {"log", run_log<T>, [](Wide<T> x) { return std::log(x); }},
    {"log1p", run_log1p<T>, [](Wide<T> x) { return std::log1p(x); }},
};

template <class T>
double error_in_ulp(T got, Wide<T> want) {
    if (std::isnan(want) || std::isnan(got)) return std::isnan(want) && std::isnan(got) ? 0 : INFINITY;
    if (std::isinf(T(want)) || std::isinf(got)) return T(want) == got ? 0 : INFINITY;
    if (want == 0) return got == 0 && std::signbit(got) == std::signbit(want) ? 0 : INFINITY;
    int exponent = std::ilogb(want) - (Wider<T>::DIGITS - 1);
    if (exponent < Wider<T>::LEAST) exponent = Wider<T>::LEAST;
    return double(std::ldexp(std::fabs(Wide<T>(got) - want), -exponent));
}

struct Worst {
    double most = 0, sum = 0, where = 0;
    long count = 0, finite = 0;
};

template <class T>
void compare(const Function<T>& f, const T* x, long n, Worst& worst) {
    static T y[4096];
    f.ours(x, y, n);
    for (long i = 0; i < n; i++) {
        const double error = error_in_ulp<T>(y[i], f.reference(Wide<T>(x[i])));
        if (error > worst.most) worst.most = error, worst.where = x[i];
        if (error < INFINITY) worst.sum += error, worst.finite++;
        worst.count++;
    }
}

template <class T>
void print(const char* name, const Worst& worst) {
    printf("%-8s %-8s %9.3f ulp at %-26a = %-13.6g mean %.4f ulp   %ld inputs\n", sizeof(T) == 4 ? "float" : "double", name,
           worst.most, worst.where, worst.where, worst.sum / double(worst.finite), worst.count);
    fflush(stdout);
}

// A splitmix64 sequence: the same on every machine.
uint64_t draw(uint64_t& state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

void all_floats(const Function<float>& f, uint64_t stride) {
    static float x[4096];
    Worst worst;
    for (uint64_t at = 0; at < uint64_t(1) << 32;) {
        long n = 0;
        for (; n < 4096; n++, at += stride) {
            const uint32_t word = uint32_t(at);  // past the end it starts again: no harm
            memcpy(&x[n], &word, sizeof word);
        }
        compare<float>(f, x, n, worst);
    }
    print<float>(f.name, worst);
}

void many_doubles(const Function<double>& f, uint64_t stride) {
    static double x[4096];
    Worst worst;
    uint64_t state = 1;
    for (long done = 0; done < long(10000000 / stride); done += 4096) {
        for (long i = 0; i < 4096; i++) {
            const uint64_t word = draw(state);
            const double unit = double(word >> 11) * 0x1p-53;
            if (i % 2)
                x[i] = unit * 40 - 20;
            else if (i % 4)  // where the functions do something
                x[i] = std::copysign(std::ldexp(1 + unit, int(word % 71) - 60), i % 8 == 2 ? 1.0 : -1.0);
            else
                memcpy(&x[i], &word, sizeof word);  // a random bit pattern
        }
        compare<double>(f, x, 4096, worst);
    }
    print<double>(f.name, worst);
}

template <class T>
void speed(const Function<T>& f) {
    static T x[4096], y[4096];
    uint64_t state = 1;
    for (T& v : x) v = T(double(draw(state) >> 11) * 0x1p-53 * 8 - 4);
    double best = INFINITY;
    for (int repeat = 0; repeat < 200; repeat++) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < 20; i++) f.ours(x, y, 4096);
        const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
        if (took.count() / (20 * 4096) < best) best = took.count() / (20 * 4096);
    }
    printf("%-8s %-8s %6.2f ns per element\n", sizeof(T) == 4 ? "float" : "double", f.name, best);
}

}  // namespace

int main(int count, char** words) {
    uint64_t stride = 1;
    bool timing = false;
    for (int i = 1; i < count; i++) {
        if (!strcmp(words[i], "--speed"))
            timing = true;
        else if (!strcmp(words[i], "--stride") && i + 1 < count && atol(words[i + 1]) > 0)
            stride = uint64_t(atol(words[++i]));
        else
            return fprintf(stderr, "usage: %s [--stride N] [--speed]\n", words[0]), 2;
    }
    printf("%d bytes per vector\n", ELMAN_VECTOR_BYTES);
    for (const Function<float>& f : FUNCTIONS<float>) timing ? speed(f) : all_floats(f, stride);
    for (const Function<double>& f : FUNCTIONS<double>) timing ? speed(f) : many_doubles(f, stride);
}
