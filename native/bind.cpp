// The Python module elman._native. Nothing else here sees Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "program.hpp"
#include "team.hpp"

namespace nb = nanobind;

namespace elman {

namespace plain {
extern const Kernels kernels;
}
#if defined(ELMAN_HAS_AVX2)
namespace avx2 {
extern const Kernels kernels;
}
#endif
#if defined(ELMAN_HAS_AVX512)
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

// --- instruction sets -----------------------------------------------------------------------------------------------------

// What this machine can run, the best first.
std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#if defined(ELMAN_HAS_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        found.push_back(&avx512::kernels);
#endif
#if defined(ELMAN_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
#endif
    found.push_back(&plain::kernels);
    return found;
}

bool poisoned = false;

// --- memory ---------------------------------------------------------------------------------------------------------------

// Workspaces that no call is using, so that a call seldom has to ask the system for one.
class Workspaces {
public:
    struct Block {
        std::unique_ptr<char[]> data;
        int64_t bytes = 0;
    };

    Block take(int64_t bytes) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (auto& block : free_)
                if (block.bytes >= bytes) {
                    Block found = std::move(block);
                    std::swap(block, free_.back());
                    free_.pop_back();
                    return found;
                }
        }
        return {std::unique_ptr<char[]>(new char[size_t(bytes)]), bytes};
    }

    void give_back(Block block) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (free_.size() >= 4) free_.erase(free_.begin());
        free_.push_back(std::move(block));
    }

private:
    std::mutex mutex_;
    std::vector<Block> free_;
};

// --- a program --------------------------------------------------------------------------------------------------------------

class Loop {
public:
    // ops: for each operation code, wait, split, four sizes, k, and for each of six operands buffer, offset, four strides.
    Loop(const Kernels& kernels, bool wide, const std::vector<std::vector<int64_t>>& prepare, const std::vector<double>& prepare_numbers,
         const std::vector<std::vector<int64_t>>& ops, const std::vector<double>& numbers, const std::vector<std::vector<int64_t>>& buffers,
         const std::vector<std::vector<int64_t>>& states, int64_t scratch_bytes, int64_t prepared_bytes, int64_t work, int64_t widest,
         int64_t constants, int64_t sequences, int64_t emits)
        : kernels_(kernels), wide_(wide), constants_(constants), sequences_(sequences), emits_(emits) {
        for (size_t i = 0; i < prepare.size(); i++) prepare_.push_back(operation(prepare[i], prepare_numbers[i]));
        for (size_t i = 0; i < ops.size(); i++) ops_.push_back(operation(ops[i], numbers[i]));
        for (const auto& b : buffers) buffers_.push_back({Kind(b.at(0)), b.at(1), b.at(2), b.at(3), b.at(4)});
        for (const auto& s : states) states_.push_back({s.at(0), s.at(1), s.at(2)});
        if (buffers_.size() > MOST_BUFFERS || states_.size() > MOST_STATES) throw std::invalid_argument("too many buffers or states");
        program_ = {prepare_.data(), int64_t(prepare_.size()), ops_.data(), int64_t(ops_.size()), buffers_.data(), int64_t(buffers_.size()),
                    states_.data(), int64_t(states_.size()), scratch_bytes, prepared_bytes, work, widest};
    }

    // pointers: address and row stride of every constant, sequence and start; address of every emit and final value, in the
    // order constants, sequences, emits, starts, finals. sizes: None or the rows of every step.
    int64_t run(int64_t steps, int64_t batch, nb::handle sizes, bool reverse, nb::list pointers, int threads) {
        const int64_t states = int64_t(states_.size());
        const int64_t expected = 2 * (constants_ + sequences_ + states) + emits_ + states;
        if (int64_t(nb::len(pointers)) != expected) throw std::invalid_argument("a wrong number of pointers");
        std::vector<Pointer> found(size_t(constants_ + sequences_ + emits_ + 2 * states));
        int64_t at = 0, number = 0;
        auto next = [&]() { return PyLong_AsLongLong(PyList_GET_ITEM(pointers.ptr(), at++)); };
        auto read = [&](int64_t count, bool strides) {
            const int64_t first = number;
            for (int64_t i = 0; i < count; i++, number++) {
                found[size_t(number)].data = reinterpret_cast<char*>(next());
                found[size_t(number)].stride = strides ? next() : 0;
            }
            return found.data() + first;
        };
        Call call = {};
        call.steps = steps, call.batch = batch, call.reverse = reverse, call.threads = threads, call.poison = poisoned;
        call.constants = read(constants_, true);
        call.sequences = read(sequences_, true);
        call.emits = read(emits_, false);
        call.starts = read(states, true);
        call.finals = read(states, false);
        if (PyErr_Occurred()) throw nb::python_error();
        std::vector<int64_t> rows, offsets;
        if (!sizes.is_none()) {
            rows = nb::cast<std::vector<int64_t>>(sizes);
            if (int64_t(rows.size()) != steps) throw std::invalid_argument("a wrong number of batch sizes");
            offsets.reserve(rows.size());
            int64_t offset = 0;
            for (const int64_t size : rows) offsets.push_back(offset), offset += size;
            call.sizes = rows.data(), call.offsets = offsets.data();
        }
        nb::gil_scoped_release release;
        Workspaces::Block block = workspaces().take(kernels_.workspace(program_, call));
        const int64_t error = (wide_ ? kernels_.run64 : kernels_.run32)(program_, call, block.data.get());
        workspaces().give_back(std::move(block));
        return error;
    }

private:
    static Op operation(const std::vector<int64_t>& flat, double number) {
        if (flat.size() != size_t(8 + OPERANDS * (2 + DIMENSIONS))) throw std::invalid_argument("an operation of a wrong length");
        Op op = {};
        op.code = Code(flat[0]), op.wait = flat[1], op.split = flat[2], op.k = flat[7], op.number = number;
        for (int d = 0; d < DIMENSIONS; d++) op.size[d] = flat[size_t(3 + d)];
        size_t at = 8;
        for (auto& operand : op.operand) {
            operand.buffer = flat[at], operand.offset = flat[at + 1];
            for (int d = 0; d < DIMENSIONS; d++) operand.stride[d] = flat[at + 2 + size_t(d)];
            at += 2 + DIMENSIONS;
        }
        return op;
    }

    static Workspaces& workspaces() {
        static Workspaces& made = *new Workspaces;
        return made;
    }

    const Kernels& kernels_;
    bool wide_;
    int64_t constants_, sequences_, emits_;
    std::vector<Op> prepare_, ops_;
    std::vector<Buffer> buffers_;
    std::vector<State> states_;
    Program program_;
};

const Kernels& named(const std::string& name) {
    for (const Kernels* kernels : usable())
        if (name == kernels->name) return *kernels;
    throw std::invalid_argument("this machine or this build has no instruction set '" + name + "'");
}

const char* const CODE_NAMES[] = {
#define ELMAN_NAME(name) #name,
#define ELMAN_INT_NAME(name) "int_" #name,
    ELMAN_UNARY(ELMAN_NAME) ELMAN_BINARY(ELMAN_NAME) ELMAN_TERNARY(ELMAN_NAME) ELMAN_COMPARE(ELMAN_NAME) ELMAN_COMPARE(ELMAN_INT_NAME)
        ELMAN_OTHER(ELMAN_NAME)
#undef ELMAN_NAME
#undef ELMAN_INT_NAME
};

}  // namespace

}  // namespace elman

NB_MODULE(_native, m) {
    using namespace elman;
    nb::set_leak_warnings(false);  // programs live as long as the process: they are cached
    m.doc() = "The native engine: runs loop programs on the CPU. See elman/engines/native/ for what makes them.";
    m.def("codes", [] {
        nb::dict found;
        for (int i = 0; i < CODES; i++) found[CODE_NAMES[i]] = i;
        return found;
    }, "Name -> number of every operation.");
    m.def("instruction_sets", [] {
        nb::list found;
        for (const Kernels* kernels : usable()) found.append(kernels->name);
        return found;
    }, "What this machine can run, the best first.");
    m.def("panels", [](const std::string& name) { return nb::make_tuple(named(name).panel_real32, named(name).panel_real64); },
          "Columns of a packed panel, in float32 and float64.");
    m.def("team", &team_name, "Which threads are used: \"openmp\" or \"own\".");
    m.def("poison", [](bool on) { poisoned = on; }, "Fill scratch memory with NaN before every call (for tests).");
    nb::class_<Loop>(m, "Loop")
        .def("__init__",
             [](Loop* self, const std::string& isa, bool wide, const std::vector<std::vector<int64_t>>& prepare, const std::vector<double>& prepare_numbers,
                const std::vector<std::vector<int64_t>>& ops, const std::vector<double>& numbers, const std::vector<std::vector<int64_t>>& buffers,
                const std::vector<std::vector<int64_t>>& states, int64_t scratch_bytes, int64_t prepared_bytes, int64_t work, int64_t widest,
                int64_t constants, int64_t sequences, int64_t emits) {
                 new (self) Loop(named(isa), wide, prepare, prepare_numbers, ops, numbers, buffers, states, scratch_bytes, prepared_bytes, work, widest,
                                 constants, sequences, emits);
             })
        .def("run", &Loop::run, nb::arg("steps"), nb::arg("batch"), nb::arg("sizes").none(), nb::arg("reverse"), nb::arg("pointers"), nb::arg("threads"));
}
