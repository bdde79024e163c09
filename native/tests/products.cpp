// Checks products.hpp for one instruction set: against plain loops, and that a row's bits depend on nothing beside it.
// Prints a line per check, and ends with 1 if one failed.
//
//   g++ -O3 -std=c++17 -mavx2 -mfma -DELMAN_ISA=avx2 -Inative native/tests/products.cpp
#include "products.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

using namespace elman::ELMAN_ISA;

namespace {

int failures = 0;

void report(bool good, const char* type, const char* what) {
    printf("%-4s %-6s %s\n", good ? "ok" : "FAIL", type, what);
    if (!good) failures++;
}

double draw() {  // splitmix64: the same on every machine
    static uint64_t state = 1;
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return double((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
}

template <class T>
std::vector<T> drawn(int64_t n) {
    std::vector<T> made(static_cast<std::size_t>(n));
    for (T& v : made) v = T(draw());
    return made;
}

template <class T>
std::vector<T> packed(const T* w, int64_t sk, int64_t sn, int64_t K, int64_t N) {
    std::vector<T> made(std::size_t((N + PANEL<T> - 1) / PANEL<T> * PANEL<T> * K), T(NAN));
    pack<T>(w, sk, sn, K, N, made.data());
    return made;
}

// One shape: weights in rows and in columns, rows apart from each other, all kinds of starts, and columns shared out.
template <class T>
void check(int64_t rows, int64_t K, int64_t N, bool& right, bool& bits, bool& inside) {
    const int64_t lda = K + 3, ldo = N + 5;
    const std::vector<T> a = drawn<T>(rows * lda), w = drawn<T>(K * N), start = drawn<T>(rows * ldo);
    std::vector<T> turned(w.size());
    for (int64_t k = 0; k < K; k++)
        for (int64_t n = 0; n < N; n++) turned[std::size_t(n * K + k)] = w[std::size_t(k * N + n)];
    const std::vector<T> panels = packed<T>(w.data(), N, 1, K, N), others = packed<T>(turned.data(), 1, K, K, N);
    bits &= !memcmp(panels.data(), others.data(), panels.size() * sizeof(T));
    const double limit = (sizeof(T) == 4 ? 1e-6 : 1e-15) * double(K + 4);
    for (int kind = 0; kind < 3; kind++) {  // no start, one for each row, one for all rows
        const T* from = kind ? start.data() : nullptr;
        const int64_t lds = kind == 1 ? ldo : 0;
        std::vector<T> out(std::size_t(rows * ldo), T(-7)), again = out, alone = out, place = kind == 1 ? start : out;
        product<T>(a.data(), lda, panels.data(), K, from, lds, out.data(), ldo, rows, 0, N);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t n = 0; n < ldo; n++) {
                const T got = out[std::size_t(r * ldo + n)];
                if (n >= N) {
                    inside &= got == T(-7);
                    continue;
                }
                double want = kind ? double(from[r * lds + n]) : 0;
                for (int64_t k = 0; k < K; k++) want += double(a[std::size_t(r * lda + k)]) * double(w[std::size_t(k * N + n)]);
                right &= std::fabs(double(got) - want) <= limit;
            }
        for (int64_t first = 0; first < N; first += 2 * PANEL<T>)  // two panels at a time
            product<T>(a.data(), lda, panels.data(), K, from, lds, again.data(), ldo, rows, first, N < first + 2 * PANEL<T> ? N : first + 2 * PANEL<T>);
        for (int64_t r = 0; r < rows; r++)
            product<T>(a.data() + r * lda, lda, panels.data(), K, from ? from + r * lds : nullptr, lds, alone.data() + r * ldo, ldo, 1, 0, N);
        for (const bool turn : {false, true}) {  // of few rows, whole panels, and a weight as it lies
            std::vector<T> lying = out;
            for (int64_t r = 0; r < rows; r++) std::fill_n(lying.begin() + r * ldo, N, T(5));
            const int64_t whole = unpacked<T>(a.data(), lda, turn ? turned.data() : w.data(), turn ? 1 : N, turn ? K : 1, K, from, lds, lying.data(), ldo, rows, N);
            bits &= whole == (rows > MOST_UNPACKED ? 0 : N / PANEL<T> * PANEL<T>);
            for (int64_t r = 0; r < rows; r++) {
                const auto row = lying.begin() + r * ldo;
                bits &= std::equal(row, row + whole, out.begin() + r * ldo);
                inside &= std::all_of(row + whole, row + N, [](T v) { return v == T(5); });
            }
        }
        bits &= !memcmp(out.data(), again.data(), out.size() * sizeof(T)) && !memcmp(out.data(), alone.data(), out.size() * sizeof(T));
        if (kind != 1) continue;
        product<T>(a.data(), lda, panels.data(), K, place.data(), ldo, place.data(), ldo, rows, 0, N);
        for (int64_t r = 0; r < rows; r++) bits &= !memcmp(&place[std::size_t(r * ldo)], &out[std::size_t(r * ldo)], std::size_t(N) * sizeof(T));
    }
}

template <class T>
void check_all(const char* type) {
    bool right = true, bits = true, inside = true;
    constexpr int64_t P = PANEL<T>;
    const int64_t widths[] = {1, 2, P / 2 - 1, P / 2, P / 2 + 1, P - 1, P, P + 1, 2 * P, 3 * P + 5, 4 * P, 9 * P - 1};
    for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 25})
        for (int64_t K : {1, 2, 16, 17, 33})
            for (int64_t N : widths) check<T>(rows, K, N, right, bits, inside);
    report(right, type, "products are what plain loops give");
    report(bits, type, "the same bits alone, in a batch, in parts, in place, and from weights turned");
    report(inside, type, "nothing is written behind the last column");
}

}  // namespace

int main() {
    check_all<float>("float");
    check_all<double>("double");
    printf("%s\n", failures ? "FAILED" : "all good");
    return failures ? 1 : 0;
}
