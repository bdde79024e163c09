// Products with constant weights as operations of a program, several together and in turns from either end.
//
// With a row or two a product takes as long as its weight takes to be read, again at every step. A cache that is smaller than
// the weights of a step, and that gives up what was used longest ago, would hold nothing of what comes next. So every other
// step goes through the columns from the last one to the first: it begins with what the step before has read last.
//
// A call of one step reads each weight once. There they are not packed beforehand: a part at a time, or with few rows not at all; nor are
// they in a call of a few steps of such rows (shares.hpp).
#pragma once

#include "amx.hpp"
#include "frame.hpp"
#include "narrow.hpp"
#include "products.hpp"

namespace elman {
namespace ELMAN_ISA {

// Columns first … stop - 1 of a product. Operands: result, left, start (may be none), packed.
template <class T>
static void columns_of(const Op& op, const Frame& f, int64_t first, int64_t stop) {
    const Operand &out = op.operand[0], &left = op.operand[1], &start = op.operand[2], &packed = op.operand[3];
    const T *a = f.at<T>(left), *from = start.buffer < 0 ? nullptr : f.at<T>(start);
    const int64_t apart = start.buffer < 0 ? 0 : f.row(start);
    T *const to = f.at<T>(out), *w = f.at<T>(packed);
    if (op.code == code_product) return weighted<T>(a, f.row(left), w, op.k, from, apart, to, f.row(out), f.rows, first, stop);
    if constexpr (sizeof(T) == sizeof(float)) {  // the weight is in fewer bits
        const int64_t columns = (op.size[3] + PANEL<T> - 1) / PANEL<T> * PANEL<T>;
        if (op.code == code_product_bfloat16)
            product<T, Halves>(a, f.row(left), reinterpret_cast<const uint32_t*>(w), op.k, from, apart, to, f.row(out), f.rows, first, stop);
        else
            product<T, Bytes>(a, f.row(left), reinterpret_cast<const int8_t*>(w + columns), op.k, from, apart, to, f.row(out), f.rows, first, stop, w);
    }
}

// A product whose weight is not packed yet. With few rows it is read as it lies, if it lies in order one way or the other; else these
// columns are packed, into the memory of columns `place` and on.
template <class T>
static void fresh_columns_of(const Op& op, const Frame& f, int64_t first, int64_t stop, int64_t place) {
    const Operand &out = op.operand[0], &left = op.operand[1], &start = op.operand[2], &weight = f.packing[op.packing].operand[1];
    const int64_t sk = weight.stride[0], sn = weight.stride[1], lda = f.row(left), lds = start.buffer < 0 ? 0 : f.row(start), ldo = f.row(out);
    const T *a = f.at<T>(left), *from = start.buffer < 0 ? nullptr : f.at<T>(start), *w = f.at<T>(weight);
    T* const to = f.at<T>(out);
    if (!in_halves<T>(op.k))
        first += unpacked<T>(a, lda, w + first * sn, sk, sn, op.k, from ? from + first : nullptr, lds, to + first, ldo, f.rows, stop - first);
    if (first >= stop) return;
    T* const packed = f.at<T>(op.operand[3]) + place * op.k;
    pack_weight<T>(w + first * sn, sk, sn, op.k, stop - first, packed);
    weighted<T>(a, lda, packed, op.k, from ? from + first : nullptr, lds, to + first, ldo, f.rows, 0, stop - first);
}

constexpr int64_t FEW = 4;             // rows; with more of them a product takes longer than reading its weight
constexpr int64_t SMALL = 32 << 10;  // bytes of a weight that the nearest cache holds anyway
constexpr int64_t LARGE = 1 << 20;  // bytes of a weight that has to come from far: all rows take some columns while they are there

// A product and those that go through their columns with it: op.together in all, of as many columns each.
template <class T>
static void products(const Op& op, const Frame& f) {
    const int64_t N = op.size[3], first = f.share(N, f.part), stop = f.share(N, f.part + 1);
    const Op* const end = &op + op.together;
    const int64_t bytes = op.k * N * int64_t(sizeof(T));
    const bool grouped = bytes > SMALL && (f.packing || (bytes > LARGE && f.rows > TALLEST) || (f.rows <= FEW && (f.back || op.together > 1)));
    const int64_t group = grouped ? panels_at_once(f.rows < TALLEST ? int(f.rows) : TALLEST) * PANEL<T> : N, groups = (stop - first + group - 1) / group;
    for (int64_t i = 0; i < groups; i++) {
        const int64_t from = first + (f.back ? groups - 1 - i : i) * group, to = stop - from < group ? stop : from + group;
        for (const Op* one = &op; one < end; one++) {
            if (f.packing && one->packing >= 0)
                fresh_columns_of<T>(*one, f, from, to, first);
            else
                columns_of<T>(*one, f, from, to);
        }
    }
}

}  // namespace ELMAN_ISA
}  // namespace elman
