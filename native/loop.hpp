// The interpreter: runs a program over time, on a share of the rows.
//
// Rows are independent, so each thread takes some of them through all steps and waits for nobody. Where threads share the columns of
// every operation instead (shares.hpp), they meet before an operation that needs what the others made.
#pragma once

#include "features.hpp"
#include "frame.hpp"
#include "packed.hpp"
#include "pointwise.hpp"
#include "shares.hpp"
#include "team.hpp"

namespace elman {
namespace ELMAN_ISA {

// --- operations -----------------------------------------------------------------------------------------------------------

template <class T>
static void perform(const Op& op, Frame& f) {
    switch (op.code) {
#define ELMAN_CASE(name) \
    case code_##name: return unary<T, name##_lanes>(op, f);
        ELMAN_UNARY(ELMAN_CASE)
#undef ELMAN_CASE
#define ELMAN_CASE(name) \
    case code_##name: return binary<T, name##_lanes>(op, f);
        ELMAN_BINARY(ELMAN_CASE)
#undef ELMAN_CASE
#define ELMAN_CASE(name) \
    case code_##name: return ternary<T, name##_lanes>(op, f);
        ELMAN_TERNARY(ELMAN_CASE)
#undef ELMAN_CASE
#define ELMAN_CASE(name)                                                 \
    case code_##name: return map2<uint8_t, T, name##_scalar>(op, f);     \
    case code_int_##name: return map2<uint8_t, int64_t, name##_scalar>(op, f);
        ELMAN_COMPARE(ELMAN_CASE)
#undef ELMAN_CASE
        case code_copy1: return map1<uint8_t, uint8_t, same_scalar>(op, f);
        case code_copy4: return map1<int32_t, int32_t, same_scalar>(op, f);
        case code_copy8: return map1<int64_t, int64_t, same_scalar>(op, f);
        case code_fill: return fill<T>(op, f, T(op.number));
        case code_int_fill: return fill<int64_t>(op, f, op.k);
        case code_where1: return where<uint8_t>(op, f);
        case code_where4: return where<int32_t>(op, f);
        case code_where8: return where<int64_t>(op, f);
#define ELMAN_CASE(name) \
    case code_##name: return map2<uint8_t, uint8_t, name##_scalar>(op, f);
        ELMAN_CASE(bool_and) ELMAN_CASE(bool_or) ELMAN_CASE(bool_xor)
#undef ELMAN_CASE
        case code_bool_not: return map1<uint8_t, uint8_t, bool_not_scalar>(op, f);
#define ELMAN_CASE(name) \
    case code_##name: return map2<int64_t, int64_t, name##_scalar>(op, f);
        ELMAN_CASE(int_add) ELMAN_CASE(int_sub) ELMAN_CASE(int_mul) ELMAN_CASE(int_maximum) ELMAN_CASE(int_minimum)
#undef ELMAN_CASE
        case code_int_remainder: return divide<int_remainder_scalar>(op, f);
        case code_int_floordiv: return divide<int_floordiv_scalar>(op, f);
        case code_bool_to_real: return map1<T, uint8_t, same_scalar>(op, f);
        case code_int_to_real: return map1<T, int64_t, same_scalar>(op, f);
        case code_bool_to_int: return map1<int64_t, uint8_t, same_scalar>(op, f);
        case code_real_to_int: return map1<int64_t, T, same_scalar>(op, f);
        case code_real_to_bool: return map1<uint8_t, T, nonzero_scalar>(op, f);
        case code_int_to_bool: return map1<uint8_t, int64_t, nonzero_scalar>(op, f);
        case code_product: case code_product_bfloat16: case code_product_int8: return products<T>(op, f);
        case code_matmul: return matmul<T>(op, f);
        case code_sum: return reduce<T, code_sum>(op, f);
        case code_prod: return reduce<T, code_prod>(op, f);
        case code_amax: return reduce<T, code_amax>(op, f);
        case code_amin: return reduce<T, code_amin>(op, f);
        case code_argmax: return extremes<T, true>(op, f);
        case code_argmin: return extremes<T, false>(op, f);
        case code_any: return logical<false>(op, f);
        case code_all: return logical<true>(op, f);
        case code_cumsum: return cumsum<T>(op, f);
        case code_softmax: return softmax<T, false>(op, f);
        case code_log_softmax: return softmax<T, true>(op, f);
        case code_softmax_backward: return softmax_backward<T, false>(op, f);
        case code_log_softmax_backward: return softmax_backward<T, true>(op, f);
        case code_layer_norm: return layer_norm<T>(op, f);
        case code_layer_norm_backward: return layer_norm_backward<T>(op, f);
        case code_gather: return gather<T>(op, f);
        case code_scatter: return scatter<T, false>(op, f);
        case code_scatter_add: return scatter<T, true>(op, f);
        case code_int_gather: return gather<int64_t>(op, f);
        case code_int_scatter: return scatter<int64_t, false>(op, f);
        case code_int_scatter_add: return scatter<int64_t, true>(op, f);
        case CODES: return;
    }
}

// --- the loop -----------------------------------------------------------------------------------------------------------

INLINE void copy_rows(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t width, int64_t rows) {
    if (rows <= 0) return;
    if (to_stride == width && from_stride == width) width *= rows, rows = 1;
    for (int64_t r = 0; r < rows; r++) __builtin_memcpy(to + r * to_stride, from + r * from_stride, std::size_t(width));
}

struct Meeting {
    int arrived = 0, round = 0;
    bool late = false;   // somebody has waited long: another process has the processor of one of us
    bool alone = false;  // so the first thread does the rest by itself; said at a meeting, so that all know it at once
    bool failed = false;  // an operation of somebody's has failed
    bool over = false;    // so all leave the loop; said at a meeting, or one would wait for another that has left
};

constexpr int64_t PATIENCE = 2000;   // looks at the meeting before giving way to others, and to look at the clock
constexpr int64_t GLANCE = 1 << 22;  // work between two looks at the clock
constexpr int64_t PAUSE = 250000000; // nanoseconds from one question whether to stop to the next

template <class T>
struct Loop {
    const Program& p;
    const Call& c;
    char* prepared;
    char* workspace;       // behind the prepared memory
    int64_t arena;         // bytes for each thread
    Meeting meeting = {};
    Failure failure = {};  // of the thread that was the first to say so
    bool said = false;
    bool stopped = false;
    bool asking = false;  // who called asks whether to stop, and may have to wait for the answer

    void meet(int parts) {
        if (parts == 1) return;
        const int round = __atomic_load_n(&meeting.round, __ATOMIC_RELAXED);
        if (__atomic_add_fetch(&meeting.arrived, 1, __ATOMIC_ACQ_REL) == parts) {
            __atomic_store_n(&meeting.arrived, 0, __ATOMIC_RELAXED);
            meeting.alone = __atomic_load_n(&meeting.late, __ATOMIC_RELAXED);
            meeting.over = __atomic_load_n(&meeting.failed, __ATOMIC_RELAXED);
            __atomic_store_n(&meeting.round, round + 1, __ATOMIC_RELEASE);
            return;
        }
        for (int64_t looks = 0, since = 0; __atomic_load_n(&meeting.round, __ATOMIC_ACQUIRE) == round; looks++) {
            if (looks < PATIENCE) continue;
            if (looks == PATIENCE) since = nanoseconds();
            give_way();
            if (__atomic_load_n(&asking, __ATOMIC_RELAXED)) since = nanoseconds();
            if (nanoseconds() - since > LATE) __atomic_store_n(&meeting.late, true, __ATOMIC_RELAXED);
        }
    }

    void work(int thread, int threads) {
        const bool columns = by_columns(p, c);
        Share rows = columns ? Share{0, c.batch} : share_rows(c, thread, threads);
        if (rows.first >= rows.stop) return;
        run_rows(rows, workspace + (columns ? 0 : thread) * arena, columns ? thread : 0, columns ? threads : 1, thread == 0);
    }

    // Whether the loop is left before its end. Who called asks, and the others hear of it.
    bool leaves(bool called, int64_t rows, int64_t& work_left, int64_t& asked) {
        if (called && c.stop && (work_left -= p.work * rows + 1) < 0) {
            work_left = GLANCE;
            const int64_t now = nanoseconds();
            if (!asked) asked = now;
            if (now - asked > PAUSE) {
                __atomic_store_n(&asking, true, __ATOMIC_RELAXED);
                if (c.stop()) __atomic_store_n(&stopped, true, __ATOMIC_RELAXED);
                __atomic_store_n(&asking, false, __ATOMIC_RELAXED);
                asked = nanoseconds();
            }
        }
        return __atomic_load_n(&stopped, __ATOMIC_RELAXED);
    }

    void run_rows(Share rows, char* memory, int part, int parts, bool called) {
        const int64_t mine = rows.stop - rows.first, block = block_rows(p, c);
        char* base[MOST_BUFFERS];
        int64_t stride[MOST_BUFFERS];
        char *current[MOST_STATES], *spare[MOST_STATES], *other[MOST_STATES];
        char* scratch = memory;
        memory += rounded((block < mine ? block : mine) * p.scratch_bytes);
        for (int64_t i = 0; i < p.state_count; i++) {
            const int64_t bytes = rounded(mine * p.states[i].width * p.states[i].bytes);
            spare[i] = memory, other[i] = memory + bytes, memory += 2 * bytes;
            // Rows that have no step at all keep what they start from.
            const int64_t running = c.sizes ? (c.steps ? c.sizes[0] : 0) : (c.steps ? c.batch : 0);
            const int64_t first = running > rows.first ? running : rows.first;
            if (part == 0) finish(i, first, rows.stop, start_of(i, first), c.starts[i].stride * p.states[i].bytes);
        }
        int64_t moving[MOST_BUFFERS], movings = 0;  // the buffers that lie elsewhere at every step
        for (int64_t b = 0; b < p.buffer_count; b++)
            if (!stays(p.buffers[b].kind)) moving[movings++] = b;
        Frame f = {base, stride, 0, part, parts, {}, packs_later(p, c) ? p.prepare : nullptr};
        int64_t settled = 0;    // rows for which the others have been placed
        int64_t before = 0, before_offset = 0;  // rows of this thread at the step before, and where its rows lie
        int64_t work_left = GLANCE, asked = 0;
        for (int64_t s = 0; s < c.steps; s++) {
            const int64_t t = c.reverse ? c.steps - 1 - s : s;
            const int64_t offset = c.offsets ? c.offsets[t] : t * c.batch;
            const int64_t all = c.sizes ? c.sizes[t] : c.batch;
            const int64_t now = (all < rows.stop ? all : rows.stop) - rows.first;
            if (now <= 0) {
                if (c.reverse) continue;
                break;
            }
            f.back = (s & 1) != c.back;
            const bool leaving = leaves(called, now, work_left, asked);
            if (leaving && parts == 1) break;
            for (int64_t i = 0; i < p.state_count; i++) locate(i, rows.first, before, before_offset, now, current, spare, other);
            const int64_t blocks = (now + block - 1) / block;
            for (int64_t b = 0, row = 0; b < blocks; b++) {
                f.rows = (now - row) / (blocks - b) + ((now - row) % (blocks - b) != 0);
                if (f.rows != settled) settle(f, scratch), settled = f.rows;
                for (int64_t i = 0; i < movings; i++) place(f, moving[i], rows.first, row, t, offset, current, spare);
                if (parts > 1 && (f.failure.happened || leaving)) __atomic_store_n(&meeting.failed, true, __ATOMIC_RELAXED);
                meet(parts);
                if (parts > 1 && (meeting.over || (meeting.alone && part))) return say(f);
                if (parts > 1 && meeting.alone) parts = f.parts = 1;
                for (int64_t i = 0; i < p.count; i += p.ops[i].together) {
                    const Op& op = p.ops[i];
                    if (parts > 1) {
                        if (op.wait) meet(parts);
                        if (!op.split && part) continue;
                    }
                    perform<T>(op, f);
                }
                row += f.rows;
            }
            if (f.failure.happened && parts == 1) break;
            // Rows that end here.
            int64_t next = 0;
            if (c.reverse)
                next = s + 1 < c.steps ? now : 0;
            else if (s + 1 < c.steps) {
                next = (c.sizes ? c.sizes[t + 1] : c.batch) - rows.first;
                next = next < 0 ? 0 : next < now ? next : now;
            }
            if (next < now) {
                meet(parts);
                for (int64_t i = 0; i < p.state_count && part == 0; i++) {
                    const int64_t width = p.states[i].width * p.states[i].bytes;
                    const int64_t e = p.states[i].emit;
                    const char* made = e < 0 ? spare[i] : c.emits[e].data + (offset + rows.first) * width;
                    finish(i, rows.first + next, rows.first + now, made + next * width, width);
                }
            }
            for (int64_t i = 0; i < p.state_count; i++) {  // what was written becomes what is read
                char* written = spare[i];
                spare[i] = other[i], other[i] = written;
            }
            before = now, before_offset = offset;
        }
        say(f);
    }

    void say(const Frame& f) {
        if (f.failure.happened && !__atomic_exchange_n(&said, true, __ATOMIC_RELAXED)) failure = f.failure;
    }

    char* start_of(int64_t i, int64_t row) const { return c.starts[i].data + row * c.starts[i].stride * p.states[i].bytes; }

    void finish(int64_t i, int64_t first, int64_t stop, const char* from, int64_t from_stride) const {
        const int64_t width = p.states[i].width * p.states[i].bytes;
        copy_rows(c.finals[i].data + first * width, width, from, from_stride, width, stop - first);
    }

    // Where the state's value for this step lies. `other` is what the step before wrote, if no emit holds that.
    void locate(int64_t i, int64_t first, int64_t before, int64_t before_offset, int64_t now, char** current, char** spare, char** other) const {
        const State& s = p.states[i];
        const int64_t width = s.width * s.bytes;
        if (before == 0) {
            current[i] = nullptr;  // the starting value
            return;
        }
        char* written = s.emit < 0 ? other[i] : c.emits[s.emit].data + (before_offset + first) * width;
        current[i] = written;
        if (now <= before) return;
        if (s.emit >= 0) copy_rows(other[i], width, written, width, width, before);
        copy_rows(other[i] + before * width, width, start_of(i, first + before), c.starts[i].stride * s.bytes, width, now - before);
        current[i] = other[i];
        (void)spare;
    }

    static bool stays(Kind kind) { return kind == constant || kind == elman::scratch || kind == elman::prepared; }

    // The buffers that stay where they are while a block has as many rows.
    void settle(Frame& f, char* scratch) const {
        for (int64_t b = 0; b < p.buffer_count; b++) {
            const Buffer& buffer = p.buffers[b];
            if (buffer.kind == constant) f.base[b] = c.constants[buffer.index].data, f.stride[b] = 0;
            if (buffer.kind == elman::prepared) f.base[b] = prepared + buffer.offset, f.stride[b] = 0;
            if (buffer.kind == elman::scratch) f.base[b] = scratch + buffer.offset * f.rows, f.stride[b] = buffer.width;
        }
    }

    // Another buffer of a block: `row` is its first row among the thread's, `first` the thread's first row.
    void place(Frame& f, int64_t b, int64_t first, int64_t row, int64_t t, int64_t offset, char** current, char** spare) const {
        const Buffer& buffer = p.buffers[b];
        int64_t stride = buffer.width;
        char* data = nullptr;
        switch (buffer.kind) {
            case rowed:
                stride = c.constants[buffer.index].stride;
                data = c.constants[buffer.index].data + (first + row) * stride * buffer.bytes;
                break;
            case sequence:
                stride = c.sequences[buffer.index].stride;
                data = c.sequences[buffer.index].data + (offset + first + row) * stride * buffer.bytes;
                break;
            case stepped:
                data = c.sequences[buffer.index].data + t * c.sequences[buffer.index].stride * buffer.bytes, stride = 0;
                break;
            case emit: data = c.emits[buffer.index].data + (offset + first + row) * stride * buffer.bytes; break;
            case state:
                if (!current[buffer.index]) {
                    stride = c.starts[buffer.index].stride;
                    data = start_of(buffer.index, first + row);
                } else
                    data = current[buffer.index] + row * stride * buffer.bytes;
                break;
            case next: data = spare[buffer.index] + row * stride * buffer.bytes; break;
            default: return;
        }
        f.base[b] = data, f.stride[b] = stride;
    }
};

// Packs weights and spreads what does not change. The columns of weights are shared out, where a team goes on with them.
template <class T>
struct Preparing {
    const Program& p;
    const Call& c;
    char* base[MOST_BUFFERS];
    int64_t stride[MOST_BUFFERS] = {};
    int64_t packs = 0;  // elements

    Preparing(const Program& program, const Call& call, char* prepared) : p(program), c(call) {
        for (int64_t b = 0; b < p.buffer_count; b++) {
            const Buffer& buffer = p.buffers[b];
            base[b] = buffer.kind == constant ? c.constants[buffer.index].data : buffer.kind == elman::prepared ? prepared + buffer.offset : nullptr;
        }
    }

    bool packs_now(const Op& op) const { return op.code == code_product && !(op.packing >= 0 && packs_later(p, c)); }

    // All but weights, which nothing else reads.
    Failure spread() {
        Frame f = {base, stride, 1, 0, 1, {}};
        for (int64_t i = 0; i < p.prepares; i++) {
            const Op& op = p.prepare[i];
            const Operand &to = op.operand[0], &from = op.operand[1];
            if (op.code == code_product)
                packs += packs_now(op) ? op.k * op.size[3] : 0;
            else if (op.code == code_product_bfloat16)
                pack_halves(f.at<float>(from), from.stride[0], from.stride[1], op.k, op.size[3], f.at<uint32_t>(to));
            else if (op.code == code_product_int8)
                pack_bytes(f.at<float>(from), from.stride[0], from.stride[1], op.k, op.size[3], f.at<float>(to));
            else
                perform<T>(op, f);
        }
        return f.failure;
    }

    void pack(int part, int parts) {
        const Frame f = {base, stride, 1, part, parts, {}};
        for (int64_t i = 0; i < p.prepares; i++) {
            const Op& op = p.prepare[i];  // packed, weight with strides of k and n
            if (!packs_now(op)) continue;
            const Operand &to = op.operand[0], &from = op.operand[1];
            const int64_t first = f.share(op.size[3], part), stop = f.share(op.size[3], part + 1);
            if (first < stop)
                pack_weight<T>(f.at<T>(from) + first * from.stride[1], from.stride[0], from.stride[1], op.k, stop - first, packed_at(f.at<T>(to), op.k, first));
        }
    }
};

template <class T>
static Failure prepare(const Program& p, const Call& c, char* prepared) {
    Preparing<T> all(p, c, prepared);
    const Failure failed = all.spread();
    if (failed.happened || !all.packs) return failed;
    run_team(all.packs < (1 << 16) ? 1 : int(team_size(p, c)), [](void* argument, int part, int parts) { static_cast<Preparing<T>*>(argument)->pack(part, parts); }, &all);
    return failed;
}

INLINE int64_t arena_bytes(const Program& p, const Call& c) {
    const int64_t block = block_rows(p, c);
    return rounded((block < c.batch ? block : c.batch) * p.scratch_bytes) + state_bytes(p, c.batch) + 4 * LINE;
}

static int64_t workspace_bytes(const Program& p, const Call& c) {
    return (c.prepared ? 0 : rounded(p.prepared_bytes)) + team_size(p, c) * arena_bytes(p, c) + LINE;
}

template <class T>
static Failure run(const Program& p, const Call& c, char* workspace) {
    workspace += (LINE - int64_t(reinterpret_cast<uintptr_t>(workspace)) % LINE) % LINE;
    if (c.poison) __builtin_memset(workspace, 0xff, std::size_t(workspace_bytes(p, c) - LINE));
    char* prepared = c.prepared;
    if (!prepared) {
        prepared = workspace, workspace += rounded(p.prepared_bytes);
        const Failure failed = prepare<T>(p, c, prepared);
        if (failed.happened) return failed;
    }
    Loop<T> loop = {p, c, prepared, workspace, arena_bytes(p, c)};
    run_team(int(team_size(p, c)), [](void* argument, int thread, int all) { static_cast<Loop<T>*>(argument)->work(thread, all); }, &loop);
    if (loop.meeting.late) lost(LATE);
    loop.failure.stopped = loop.stopped;
    return loop.failure;
}

}  // namespace ELMAN_ISA
}  // namespace elman
