// Where an operation finds its operands: the buffers of one block of rows at one step.
#pragma once

#include "program.hpp"
#include "vector.hpp"

namespace elman {
namespace ELMAN_ISA {

struct Frame {
    char** base;         // of each buffer: its first row in this block, at this step
    int64_t* stride;     // of each buffer: elements between rows
    int64_t rows;        // of the block
    int part, parts;     // the share of columns of this thread; 0, 1 where rows are shared out
    Failure failure;     // of an operation of this thread, the first one
    const Op* packing = nullptr;  // the program's `prepare`, where products pack their weights themselves
    bool back = false;   // whether this step goes through the columns of products from the last one to the first

    template <class T>
    T* at(const Operand& o) const {
        return reinterpret_cast<T*>(base[o.buffer]) + o.offset;
    }

    void fail(bool behind, int64_t index, int64_t size) {
        if (!failure.happened) failure = {true, behind, index, size};
    }

    int64_t row(const Operand& o) const { return stride[o.buffer]; }

    // The first column of a part: whole panels, and the same wherever n is.
    int64_t share(int64_t n, int i) const {
        if (i >= parts) return n;
        constexpr int64_t unit = ELMAN_VECTOR_BYTES / 2;  // a panel of floats, two of doubles
        return n / unit * i / parts * unit;
    }
};

}  // namespace ELMAN_ISA
}  // namespace elman
