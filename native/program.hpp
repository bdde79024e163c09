// What a loop is to the interpreter: plain data, made once in Python (elman/engines/native/) and run many times.
//
// A program computes one time step for a block of rows. Every value is a tensor per row; the rows of a value lie a
// fixed stride apart. A value lives in a buffer; an operand is a view into one: an offset and strides, in elements. So
// slices, transpositions, broadcasts and (mostly) concatenations cost nothing.
//
// No templates and nothing of the standard library here: this file is seen by every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace elman {

// --- operations -------------------------------------------------------------------------------------------------------
// Names are shared with Python. Number types: real is the program's float or double, bool one byte, int 64 bits.

// real -> real, element by element
#define ELMAN_UNARY(X) \
    X(neg) X(abs) X(sign) X(exp) X(expm1) X(log) X(log1p) X(tanh) X(sigmoid) X(sqrt) X(rsqrt) X(reciprocal) X(relu) \
    X(round) X(floor) X(ceil) X(trunc) X(erf) X(sin) X(cos) X(atan) X(square)

// real, real -> real; the last two are g (1 - y²) and g y (1 - y)
#define ELMAN_BINARY(X) \
    X(add) X(sub) X(mul) X(div) X(maximum) X(minimum) X(pow) X(fmod) X(remainder) X(floordiv) X(atan2) X(tanh_backward) \
    X(sigmoid_backward)

// real, real, real -> real: a b + c, c - a b, a b - c, a + w (b - a), x > t ? g : 0, min(max(x, lo), hi)
#define ELMAN_TERNARY(X) X(fma) X(fnma) X(fms) X(lerp) X(threshold_backward) X(clamp)

// real, real -> bool; int, int -> bool
#define ELMAN_COMPARE(X) X(lt) X(le) X(gt) X(ge) X(eq) X(ne)

// Everything else. Which operands they take stands beside their code in features.hpp and pointwise.hpp.
#define ELMAN_OTHER(X) \
    X(copy1) X(copy4) X(copy8) X(fill) X(int_fill) X(where1) X(where4) X(where8) \
    X(bool_and) X(bool_or) X(bool_xor) X(bool_not) \
    X(int_add) X(int_sub) X(int_mul) X(int_remainder) X(int_floordiv) X(int_maximum) X(int_minimum) \
    X(bool_to_real) X(int_to_real) X(bool_to_int) X(real_to_int) X(real_to_bool) X(int_to_bool) \
    X(product) X(product_bfloat16) X(product_int8) X(matmul) X(sum) X(prod) X(amax) X(amin) X(argmax) X(argmin) X(any) X(all) X(cumsum) X(softmax) \
    X(log_softmax) X(softmax_backward) X(log_softmax_backward) X(layer_norm) X(layer_norm_backward) X(gather) \
    X(scatter) X(scatter_add) X(int_gather) X(int_scatter) X(int_scatter_add)

#define ELMAN_CODE(name) code_##name,
#define ELMAN_INT_CODE(name) code_int_##name,
enum Code : int32_t {
    ELMAN_UNARY(ELMAN_CODE) ELMAN_BINARY(ELMAN_CODE) ELMAN_TERNARY(ELMAN_CODE) ELMAN_COMPARE(ELMAN_CODE)
        ELMAN_COMPARE(ELMAN_INT_CODE) ELMAN_OTHER(ELMAN_CODE) CODES
};
#undef ELMAN_CODE
#undef ELMAN_INT_CODE

// --- a program --------------------------------------------------------------------------------------------------------

// Where a buffer's memory is. Names are shared with Python.
//   constant  the same for all rows and steps
//   rowed     the same at all steps, one for each row
//   sequence  packed rows: row i of step t is at (offset of t) + i
//   stepped   one for each step, the same for all rows
//   emit      like a sequence, written by the loop
//   state     the value that a delay holds at this step
//   next      where its value for the next step is written, unless an emit holds it
//   scratch   lives within a step
//   prepared  made of constants at the beginning of a call: packed weights, broadcast biases, numbers
#define ELMAN_KINDS(X) X(constant) X(rowed) X(sequence) X(stepped) X(emit) X(state) X(next) X(scratch) X(prepared)

#define ELMAN_KIND(name) name,
enum Kind : int32_t { ELMAN_KINDS(ELMAN_KIND) };
#undef ELMAN_KIND

struct Buffer {
    Kind kind;
    int64_t index;   // which constant, sequence, emit or state
    int64_t width;   // elements in a row
    int64_t bytes;   // of an element
    int64_t offset;  // scratch: bytes in front of it in a row of scratch, whole cache lines; prepared: in the prepared memory
};

// Python takes these from here, too: native/bind.cpp.
constexpr int DIMENSIONS = 4, OPERANDS = 6;           // of an operation
constexpr int MOST_BUFFERS = 1024, MOST_STATES = 64;  // of a program
constexpr int64_t LINE = 64;                          // bytes of a cache line

struct Operand {
    int64_t buffer;  // -1: none
    int64_t offset;
    int64_t stride[DIMENSIONS];
};

struct Op {
    Code code;
    int64_t wait;                // where columns are shared out between threads: all must have got here
    int64_t split;               // and this operation is shared out; else one thread does it
    int64_t packing;             // of a product, and of what packs its weight for no other one: that operation of `prepare`; else -1
    int64_t together;            // products that go through their columns together, from this one on; 1 for any other operation
    int64_t size[DIMENSIONS];    // elements in a row that it computes, innermost last, 1 in front
    int64_t k;                   // products: the length of a sum; gather, scatter: the length of the dimension; int_fill: the number
    double number;               // fill: the number; layer_norm: epsilon; gather, scatter: whether indices may count from behind
    Operand operand[OPERANDS];   // results first
};

struct State {
    int64_t emit;   // the emit that holds its next values, or -1
    int64_t width;  // elements in a row
    int64_t bytes;  // of an element
};

struct Program {
    const Op* prepare;  // run once at the beginning of a call, by one thread; a team shares out the columns of weights
    int64_t prepares;
    const Op* ops;
    int64_t count;
    const Buffer* buffers;
    int64_t buffer_count;
    const State* states;
    int64_t state_count;
    int64_t scratch_bytes;   // for one row
    int64_t prepared_bytes;  // in all
    int64_t work;            // multiplications and the like for one row and step, to choose the number of threads
    int64_t widest;          // columns of the widest product
};

struct Pointer {
    char* data;
    int64_t stride;  // elements between rows (between steps, if stepped)
};

// One call. `offsets[t]` is the number of packed rows in front of step t; with `offsets` null all steps have `batch` rows.
struct Call {
    int64_t steps, batch;
    const int64_t* sizes;    // rows at each step, never growing; null: `batch` at every step
    const int64_t* offsets;
    bool reverse;
    const Pointer* constants;
    const Pointer* sequences;
    const Pointer* emits;
    const Pointer* starts;
    const Pointer* finals;
    int threads;
    char* prepared;          // memory that Kernels::prepare has filled before; null: prepared in this call
    bool poison;             // fill scratch with NaN first
    bool back;               // the first step goes through the columns of products from the last one to the first (packed.hpp)
    bool (*stop)();          // asked now and then by the thread that called: whether to leave the loop; null: never
};

// --- products outside the loop ------------------------------------------------------------------------------------------

// out [m, n] = start + a [m, k] b [k, n]; or, if sums, out [n], the sum of b's k rows, each times a normalised row where there
// is an a: b (a [k, n] - start [k]) times [k]. Strides in elements; columns of out and start lie side by side, start may be null
// or have one row for all (start_row 0), and out may be start but overlaps neither a nor b.
struct Matrices {
    bool sums;
    int64_t m, n, k;
    const char* a;
    int64_t a_row, a_column;
    const char* b;
    int64_t b_row, b_column;
    const char* start;
    int64_t start_row;
    const char* times;
    int64_t times_row;
    char* out;
    int64_t out_row;
};

// --- random numbers --------------------------------------------------------------------------------------------------------

// Steps first … first + steps - 1 of a sequence of numbers in [0, 1), `count` at each step, written to `to` in order.
struct Drawing {
    uint64_t seed;
    int64_t first, steps, count;
    char* to;
};

// x m / (1 - p): each number by itself is left out with probability p, or kept.
struct Dropping {
    uint64_t seed;
    int64_t count;
    double p;
    const char* from;
    char* to;
};

// --- learning forward in time ---------------------------------------------------------------------------------------------

// influence [rows, blocks, units, columns] = jacobian [rows, blocks, units, units] times it, for each row and block; then, of each
// row, added[of[i]] is added at at[i]. of: null for i itself. added_row: elements between the rows of added.
struct Carried {
    int64_t rows, blocks, units, columns;
    const char* jacobian;
    char* influence;
    const char* added;
    int64_t added_row;
    const int64_t *at, *of;
    int64_t count;
};

// What an operation met that has no answer: an index that is none of a dimension of `size`; or, if size is 0, a division of
// whole numbers by zero.
struct Failure {
    bool happened;
    bool behind;  // whether the index might have counted from behind
    int64_t index, size;
    bool stopped;  // nothing failed: Call::stop said so
};

// What an instruction set offers.
struct Kernels {
    const char* name;
    int64_t panel_real32, panel_real64;  // columns of a packed panel
    Failure (*run32)(const Program&, const Call&, char* workspace);
    Failure (*run64)(const Program&, const Call&, char* workspace);
    // What `Call::prepared` is, made of a call's constants.
    Failure (*prepare32)(const Program&, const Call&, char* prepared);
    Failure (*prepare64)(const Program&, const Call&, char* prepared);
    // Bytes of workspace that a call needs.
    int64_t (*workspace)(const Program&, const Call&);
    // Several products, and the bytes they need.
    void (*multiply32)(const Matrices*, int64_t count, int threads, char* space);
    void (*multiply64)(const Matrices*, int64_t count, int threads, char* space);
    int64_t (*multiply_bytes32)(const Matrices*, int64_t count, int threads);
    int64_t (*multiply_bytes64)(const Matrices*, int64_t count, int threads);
    void (*uniform32)(const Drawing&, int threads);
    void (*uniform64)(const Drawing&, int threads);
    void (*normal32)(const Drawing&, int threads);
    void (*normal64)(const Drawing&, int threads);
    void (*dropped32)(const Dropping&, int threads);
    void (*dropped64)(const Dropping&, int threads);
    // And the bytes it needs for so many units.
    void (*carry32)(const Carried&, int threads, char* space);
    void (*carry64)(const Carried&, int threads, char* space);
    int64_t (*carry_bytes32)(int64_t units, int threads);
    int64_t (*carry_bytes64)(int64_t units, int threads);
    // As many of them as there can be, to be timed (peak.hpp).
    int64_t (*multiply_adds32)(int64_t rounds);
    int64_t (*multiply_adds64)(int64_t rounds);
};

}  // namespace elman
