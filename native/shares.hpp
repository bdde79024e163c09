// What each thread has of a call: rows, or columns where rows are few; how many go through a step together; and when a weight is packed.
#pragma once

#include "packed.hpp"

namespace elman {
namespace ELMAN_ISA {

INLINE int64_t rounded(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

constexpr int64_t AT_ONCE = 64;  // rows of a single step that go through it together, at most

// Rows that go through a step together: so many that what they leave behind stays in the nearer caches. Of one step, all of
// a few, so that each weight is gone through once.
INLINE int64_t block_rows(const Program& p, const Call& c) {
    if (c.steps == 1 && c.batch <= AT_ONCE) return c.batch > TALLEST ? c.batch : TALLEST;
    const int64_t fitting = (192 << 10) / (p.scratch_bytes + 1) / TALLEST * TALLEST;
    return fitting < TALLEST ? TALLEST : fitting > 36 ? 36 : fitting;
}

INLINE int64_t state_bytes(const Program& p, int64_t rows) {
    int64_t total = 0;
    for (int64_t i = 0; i < p.state_count; i++) total += 2 * rounded(rows * p.states[i].width * p.states[i].bytes);
    return total;
}

// Few rows or one step, and large products: share out columns, so that a weight is read, and packed, by one thread. (A row's product of
// 128 by 128 takes 0.7 us, a meeting 0.2.)
INLINE bool by_columns(const Program& p, const Call& c) {
    return (c.batch < c.threads || (c.steps == 1 && c.batch <= AT_ONCE)) && !c.sizes && p.widest >= 2 * 128 * 128;
}

// No more threads than these are of use.
INLINE int64_t team_size(const Program& p, const Call& c) {
    if (p.work * c.batch * c.steps < (1 << 19)) return 1;
    return by_columns(p, c) ? c.threads : c.batch < c.threads ? c.batch : c.threads;
}

// Whether each weight is read by one thread, once: then products pack it piece by piece, and a piece stays in the cache until it is
// read. Or a few times by rows for which it is not packed at all: that takes less, the longer the larger the weight.
INLINE bool packs_later(const Program& p, const Call& c) {
    const int64_t bytes = p.widest * int64_t(sizeof(float));  // chosen where numbers are floats
    const int64_t steps = bytes > LARGE && c.batch == 1 ? 8 : bytes > LARGE / 4 && c.batch <= 3 ? 4 : 2;
    const bool few = c.steps == 1 ? c.batch <= block_rows(p, c) : c.batch <= UNPACKED_ROWS && c.steps <= steps;
    return !c.prepared && few && (by_columns(p, c) || team_size(p, c) == 1);
}

struct Share {
    int64_t first, stop;
};

// The rows of a thread: as much work for each, whole rows, neighbours together.
static Share share_rows(const Call& c, int thread, int threads) {
    if (!c.sizes) return {c.batch * thread / threads, c.batch * (thread + 1) / threads};
    auto work_before = [&](int64_t row) {
        int64_t total = 0;
        for (int64_t t = 0; t < c.steps; t++) total += c.sizes[t] < row ? c.sizes[t] : row;
        return total;
    };
    const int64_t all = work_before(c.batch);
    auto border = [&](int i) {
        if (i == 0) return int64_t(0);
        if (i == threads) return c.batch;
        int64_t low = 0, high = c.batch;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (work_before(middle) * threads < all * i)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    };
    return {border(thread), border(thread + 1)};
}

}  // namespace ELMAN_ISA
}  // namespace elman
