// The Python module elman._native. Nothing else here sees Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "pieces.hpp"
#include "program.hpp"
#include "rows.hpp"
#include "sets.hpp"
#include "stream.hpp"
#include "team.hpp"
#include "tensors.hpp"
#include "watch.hpp"

namespace nb = nanobind;

namespace elman {
namespace {

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

    // While the process forks nobody has the lock: in the child a thread that had it would be gone, and never give it back.
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

private:
    std::mutex mutex_;
    std::vector<Block> free_;
};

Workspaces& workspaces() {
    static Workspaces& made = *new Workspaces;
    return made;
}

#if defined(__unix__) || defined(__APPLE__)
const int guarded = pthread_atfork([] { workspaces().lock(); }, [] { workspaces().unlock(); }, [] { workspaces().unlock(); });
#else
const int guarded = 0;
#endif

// --- tensors ----------------------------------------------------------------------------------------------------------------

int64_t entry(const nb::object& tuple, Py_ssize_t i) {
    const int64_t found = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i));
    if (found == -1 && PyErr_Occurred()) throw nb::python_error();
    return found;
}

struct Pair {
    int64_t first, second;
};

// Sizes or strides of a matrix.
Pair pair(PyObject* tensor, PyObject* method) {
    const nb::object found = ask(tensor, method);
    if (!PyTuple_Check(found.ptr()) || PyTuple_GET_SIZE(found.ptr()) != 2) throw std::invalid_argument("a product of something else than matrices");
    const Pair made = {PyLong_AsLongLong(PyTuple_GET_ITEM(found.ptr(), 0)), PyLong_AsLongLong(PyTuple_GET_ITEM(found.ptr(), 1))};
    if (PyErr_Occurred()) throw nb::python_error();
    return made;
}

// --- products outside the loop ------------------------------------------------------------------------------------------

// What a product starts from, wherever it can be read as it lies: rows of columns side by side, or one such row for all.
bool start_of(Matrices& p, PyObject* start) {
    const nb::object size = ask(start, asked().size), step = ask(start, asked().stride);
    const Py_ssize_t dimensions = PyTuple_GET_SIZE(size.ptr());
    if (dimensions < 1 || dimensions > 2 || entry(size, dimensions - 1) != p.n || (p.n > 1 && entry(step, dimensions - 1) != 1)) return false;
    const bool one = dimensions == 1 || (p.m > 1 && entry(size, 0) == 1);
    if (!one && entry(size, 0) != p.m) return false;
    p.start = address(start), p.start_row = one ? 0 : entry(step, 0);
    return true;
}

// products: (a, b, start, out) each; a None for the sum over b's rows, start None for nothing or what broadcasts to out.
void multiply(const Kernels& kernels, bool wide, const nb::tuple& products, int threads) {
    std::vector<Matrices> found;
    found.reserve(nb::len(products));
    std::vector<nb::object> kept;
    kept.reserve(3 * nb::len(products));
    auto plain = [&](PyObject* tensor) { return kept.push_back(plain_tensor(tensor)), kept.back().ptr(); };
    for (const nb::handle item : products) {
        if (!PyTuple_Check(item.ptr()) || PyTuple_GET_SIZE(item.ptr()) != 4) throw std::invalid_argument("a product is (a, b, start, out)");
        PyObject *a = PyTuple_GET_ITEM(item.ptr(), 0), *b = PyTuple_GET_ITEM(item.ptr(), 1);
        PyObject *start = PyTuple_GET_ITEM(item.ptr(), 2), *out = PyTuple_GET_ITEM(item.ptr(), 3);
        Matrices p = {};
        b = plain(b);
        const Pair size = pair(b, asked().size), step = pair(b, asked().stride);
        p.k = size.first, p.n = size.second, p.m = 1, p.sums = a == Py_None;
        p.b = address(b), p.b_row = step.first, p.b_column = step.second;
        if (!p.sums) {
            a = plain(a);
            const Pair left = pair(a, asked().size), along = pair(a, asked().stride);
            if (left.second != p.k) throw std::invalid_argument("matrices that do not fit together");
            p.m = left.first, p.a = address(a), p.a_row = along.first, p.a_column = p.k == 1 ? 1 : along.second;
        }
        const Pair made = pair(out, asked().size), over = pair(out, asked().stride);
        if (made.first != p.m || made.second != p.n || (over.second != 1 && p.n > 1)) throw std::invalid_argument("a result of a wrong form");
        p.out = address(out), p.out_row = over.first;
        if (start != Py_None && !start_of(p, start = plain(start))) {
            const nb::object copied = nb::steal(PyObject_CallMethodOneArg(out, asked().copy_, start));
            if (!copied.is_valid()) throw nb::python_error();
            p.start = p.out, p.start_row = p.out_row;
        }
        found.push_back(p);
    }
    const Kernels& now = of_now(kernels);
    nb::gil_scoped_release release;
    const int64_t count = int64_t(found.size());
    Workspaces::Block block = workspaces().take((wide ? now.multiply_bytes64 : now.multiply_bytes32)(found.data(), count, threads));
    (wide ? now.multiply64 : now.multiply32)(found.data(), count, threads, block.data.get());
    workspaces().give_back(std::move(block));
}

}  // namespace
}  // namespace elman

#include "interpreter.hpp"
#include "pass.hpp"
#include "again.hpp"
#include "carrier.hpp"

namespace elman {
namespace {

struct Multiplier {
    const Kernels& kernels;
    bool wide;
};

const char* const CODE_NAMES[] = {
#define ELMAN_NAME(name) #name,
#define ELMAN_INT_NAME(name) "int_" #name,
    ELMAN_UNARY(ELMAN_NAME) ELMAN_BINARY(ELMAN_NAME) ELMAN_TERNARY(ELMAN_NAME) ELMAN_COMPARE(ELMAN_NAME) ELMAN_COMPARE(ELMAN_INT_NAME)
        ELMAN_OTHER(ELMAN_NAME)
#undef ELMAN_INT_NAME
};

const char* const KIND_NAMES[] = {ELMAN_KINDS(ELMAN_NAME)};
#undef ELMAN_NAME

// name -> number
template <int count>
nb::dict numbered(const char* const (&names)[count]) {
    nb::dict found;
    for (int i = 0; i < count; i++) found[names[i]] = i;
    return found;
}

// --- pieces ---------------------------------------------------------------------------------------------------------------

// A numpy array of numbers that an object of Python's keeps.
template <class To, class T>
nb::object array(std::vector<T>& numbers, nb::handle keeper) {
    const size_t shape[1] = {numbers.size()};
    return nb::cast(nb::ndarray<nb::numpy, To, nb::ndim<1>>(reinterpret_cast<To*>(numbers.data()), 1, shape, keeper));
}

template <class To, class T>
auto array_of(std::vector<T> Pieces::* numbers) {
    return [numbers](nb::handle self) { return array<To>(nb::cast<Pieces&>(self).*numbers, self); };
}

template <class T>
const T* optional_address(const nb::object& tensor) {
    return tensor.is_none() ? nullptr : reinterpret_cast<const T*>(address(tensor.ptr()));
}

// Whether a tensor can be read as it lies: int64 [B], on the CPU, each in 0 ... T.
bool are_lengths(const nb::object& tensor, int64_t steps, int64_t batch) {
    constexpr int32_t CPU = 1, INT = 0;
    Described known;
    if (!describe(tensor.ptr(), known) || known.device != CPU || known.code != INT || known.bits != 64 || known.lanes != 1) return false;
    if (known.dimensions != 1 || known.sizes[0] != batch || !known.in_order() || is_negative(tensor.ptr()) || is_unwritten(tensor.ptr(), known.data)) return false;
    const int64_t* lengths = reinterpret_cast<const int64_t*>(known.data);
    for (int64_t b = 0; b < batch; b++)
        if (lengths[b] < 0 || lengths[b] > steps) return false;
    return true;
}

}  // namespace

}  // namespace elman

NB_MODULE(_native, m) {
    using namespace elman;
    (void)guarded;
    nb::set_leak_warnings(false);  // programs live as long as the process: they are cached
    m.doc() = "The native engine: runs loop programs on the CPU. See elman/engines/native/ for what makes them.";
    m.attr("CODES") = numbered(CODE_NAMES);
    m.attr("KINDS") = numbered(KIND_NAMES);
    m.attr("DIMENSIONS") = DIMENSIONS;
    m.attr("OPERANDS") = OPERANDS;
    m.attr("MOST_BUFFERS") = MOST_BUFFERS;
    m.attr("MOST_STATES") = MOST_STATES;
    m.attr("LINE") = LINE;
    m.attr("ROWS") = numbered(ROWS_NAMES);
    m.attr("ORDERS") = numbered(ORDER_NAMES);
    m.attr("PLACES") = numbered(PLACE_NAMES);
    m.attr("PIECES") = numbered(PIECE_NAMES);
    m.def("instruction_sets", [] {
        nb::list found;
        for (const Kernels* kernels : usable()) found.append(kernels->name);
        return found;
    }, "What this machine can run, the best first.");
    m.def("panels", [](const std::string& name) { return nb::make_tuple(named(name).panel_real32, named(name).panel_real64); },
          "Columns of a packed panel, in float32 and float64.");
    m.def("describes", [](nb::handle tensor) {
        Described found;
        return describe(tensor.ptr(), found);
    }, nb::arg("tensor"), "Whether a tensor can be read without its methods.");
    m.def("team", &team_name, "Which threads are used: \"openmp\" or \"own\".");
    m.def("ask_precision", [](const nb::object& ask) { Py_XSETREF(precision, nb::object(ask).release().ptr()); }, nb::arg("ask"),
          "What to ask at every call: () -> \"bf16\" where products of float32 may be made in bfloat16.");
    m.def("has_tiles", &keeps_tiles, "Whether this machine makes them so; else they are made in float32 all the same.");
    m.def("poison", [](bool on) { poisoned = on; }, "Fill scratch memory with NaN before every call (for tests).");
    m.def("tiles", [](int64_t bytes, int64_t rows) {
        const nb::tuple before = nb::make_tuple(tile_bytes, tile_rows);
        tile_bytes = bytes, tile_rows = rows;
        return before;
    }, nb::arg("bytes"), nb::arg("rows"), "How much a pass computes at a time, from here on (for tests). Gives what it was.");
    m.def("keep_memory", &Spare::count, nb::arg("begins"), "From here on passes of this thread hand memory to each other, or, as often, no longer.");
    nb::class_<Pieces>(m, "Pieces", "The steps of a batch that happen, cut into pieces: see native/pieces.hpp.")
        .def("__init__", [](Pieces* self, int64_t steps, int64_t batch, const nb::object& lengths, const nb::object& happens, const nb::object& resets) {
            new (self) Pieces(cut(steps, batch, optional_address<int64_t>(lengths), optional_address<uint8_t>(happens), optional_address<uint8_t>(resets)));
        }, nb::arg("steps"), nb::arg("batch"), nb::arg("lengths").none(), nb::arg("happens").none(), nb::arg("resets").none())
        .def_prop_ro("owner", array_of<int64_t>(&Pieces::owner))
        .def_prop_ro("fresh", array_of<bool>(&Pieces::fresh))
        .def_prop_ro("first", array_of<int64_t>(&Pieces::first))
        .def_prop_ro("last", array_of<int64_t>(&Pieces::last))
        .def_prop_ro("sizes", array_of<int64_t>(&Pieces::sizes))
        .def_prop_ro("rows", array_of<int64_t>(&Pieces::rows))
        .def_prop_ro("places", array_of<int64_t>(&Pieces::places))
        .def_ro("in_order", &Pieces::in_order)
        .def_ro("alone", &Pieces::alone);
    m.def("are_lengths", &are_lengths, nb::arg("tensor"), nb::arg("steps"), nb::arg("batch"),
          "Whether a tensor is int64 [B] on the CPU, in order, and each of its numbers in 0 ... T.");
    m.def("move", &move_rows, nb::arg("source"), nb::arg("index"), nb::arg("to"), nb::arg("lead"),
          "Rows in another order, written into `to`: see native/rows.hpp. False where PyTorch has to do it.");
    m.def("draw", [](const std::string& kind, const nb::object& to, bool wide, uint64_t seed, int64_t first, int64_t steps, int64_t count, int threads, const std::string& isa) {
        const Kernels& kernels = isa.empty() ? *usable().front() : named(isa);
        const Drawing drawing = {seed, first, steps, count, address(to.ptr())};
        nb::gil_scoped_release release;
        if (kind == "normal")
            (wide ? kernels.normal64 : kernels.normal32)(drawing, threads);
        else
            (wide ? kernels.uniform64 : kernels.uniform32)(drawing, threads);
    }, nb::arg("kind"), nb::arg("to"), nb::arg("wide"), nb::arg("seed"), nb::arg("first"), nb::arg("steps"), nb::arg("count"), nb::arg("threads"), nb::arg("isa") = "",
          "Fill a contiguous tensor with the numbers of some steps, uniform in [0, 1) or standard normal; one depends on seed, step and place only.");
    m.def("drop", [](const nb::object& x, const nb::object& to, bool wide, uint64_t seed, int64_t count, double p, int threads, const std::string& isa) {
        const Kernels& kernels = isa.empty() ? *usable().front() : named(isa);
        const Dropping dropping = {seed, count, p, address(x.ptr()), address(to.ptr())};
        nb::gil_scoped_release release;
        (wide ? kernels.dropped64 : kernels.dropped32)(dropping, threads);
    }, nb::arg("x"), nb::arg("to"), nb::arg("wide"), nb::arg("seed"), nb::arg("count"), nb::arg("p"), nb::arg("threads"), nb::arg("isa") = "",
          "Contiguous tensors: to = x m / (1 - p), m = 0 with probability p; one m depends on seed and place only.");
    m.def("multiply_adds", [](int64_t rounds, bool wide, const std::string& isa) {
        const Kernels& kernels = isa.empty() ? *usable().front() : named(isa);
        nb::gil_scoped_release release;
        return (wide ? kernels.multiply_adds64 : kernels.multiply_adds32)(rounds);
    }, nb::arg("rounds"), nb::arg("wide") = false, nb::arg("isa") = "", "As many multiply-adds as a core can do in so many rounds; the operations that were.");
    nb::class_<Interpreter>(m, "Interpreter")
        .def("__init__",
             [](Interpreter* self, const std::string& isa, bool wide, const std::vector<std::vector<int64_t>>& prepare, const std::vector<double>& prepare_numbers,
                const std::vector<std::vector<int64_t>>& ops, const std::vector<double>& numbers, const std::vector<std::vector<int64_t>>& buffers,
                const std::vector<std::vector<int64_t>>& states, int64_t scratch_bytes, int64_t prepared_bytes, int64_t work, int64_t widest,
                int64_t constants, int64_t sequences, int64_t emits, const std::vector<int64_t>& widths) {
                 new (self) Interpreter(named(isa), wide, prepare, prepare_numbers, ops, numbers, buffers, states, scratch_bytes, prepared_bytes, work, widest,
                                 constants, sequences, emits, widths);
             })
        .def("run", &Interpreter::run, nb::arg("steps"), nb::arg("batch"), nb::arg("sizes").none(), nb::arg("reverse"), nb::arg("values"), nb::arg("strides").none(), nb::arg("out"),
             nb::arg("finals"), nb::arg("threads"))
        .def("stream", &Interpreter::stream, nb::arg("weights"), nb::arg("inputs"), nb::arg("outputs"), nb::arg("threads"), nb::arg("failed"),
             nb::arg("empty_strided"), "The same, to be run one step at a time.");
    bind_stream(m);
    nb::class_<Pass>(m, "Pass")
        .def("__init__", [](Pass* self, const std::string& isa, bool wide, const nb::list& places, const nb::list& given, const nb::list& made,
                            const nb::list& pieces, const nb::list& outcomes, const nb::object& tiles, const nb::object& failed, const nb::object& threads,
                            const nb::object& empty, const nb::object& empty_strided, const nb::object& uint8) {
            new (self) Pass(named(isa), wide, places, given, made, pieces, outcomes, tiles, failed, threads, empty, empty_strided, uint8);
        }, nb::arg("isa"), nb::arg("wide"), nb::arg("places"), nb::arg("given"), nb::arg("made"), nb::arg("pieces"), nb::arg("outcomes"), nb::arg("tiles").none(),
           nb::arg("failed"), nb::arg("threads"), nb::arg("empty"), nb::arg("empty_strided"), nb::arg("uint8"))
        .def("__call__", &Pass::run)
        .def("packed", &Pass::run_packed)
        .def("laid", &Pass::run_laid)
        .def("bytes", &Pass::bytes)
        .def("tile", [](const Pass& pass, int64_t steps, int64_t batch) { return pass.tile_of(Counts(steps, batch)); }, nb::arg("steps"), nb::arg("batch"),
             "How many steps a call computes at a time.");
    static PyType_Slot slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(&Watch::traverse)}, {Py_tp_clear, reinterpret_cast<void*>(&Watch::clear)}, {0, nullptr}};
    nb::class_<Watch>(m, "Watch", nb::type_slots(slots))
        .def(nb::init<const nb::list&, const nb::list&, const nb::list&, const nb::list&, const nb::list&, const nb::list&, const nb::list&, const nb::list&, const nb::list&,
                      const nb::list&, const nb::list&, const nb::list&>())
        .def("unchanged", &Watch::unchanged)
        .def("same", &Watch::same);
    static PyType_Slot again[] = {{Py_tp_traverse, reinterpret_cast<void*>(&Again::traverse)}, {Py_tp_clear, reinterpret_cast<void*>(&Again::clear)}, {0, nullptr}};
    nb::class_<Again>(m, "Again", nb::type_slots(again))
        .def(nb::init<const nb::list&, const nb::list&, const nb::list&, const nb::object&, const nb::tuple&, const nb::list&, const nb::tuple&, const nb::object&, int, bool>(),
             nb::arg("checks"), nb::arg("answers"), nb::arg("names"), nb::arg("target"), nb::arg("head"), nb::arg("tensors"), nb::arg("arguments"),
             nb::arg("start").none(), nb::arg("free"), nb::arg("wants"))
        .def("__call__", &Again::operator(), nb::arg("x").none(), nb::arg("state").none());
    bind_carrier(m);
    nb::class_<Multiplier>(m, "Multiplier")
        .def("__init__", [](Multiplier* self, const std::string& isa, bool wide) { new (self) Multiplier{named(isa), wide}; })
        .def("__call__", [](const Multiplier& self, const nb::tuple& products, int threads) { multiply(self.kernels, self.wide, products, threads); });
}
