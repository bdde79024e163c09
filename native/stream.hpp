// A program that runs one step after another: what is made of constants is made once, and the states are kept here.
//
// A step takes what lies as it should, tensors or NumPy arrays of the form that it was told, and says so where it does not:
// then it has done nothing, and Python finds out why.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lines.hpp"
#include "program.hpp"
#include "sets.hpp"
#include "tensors.hpp"
#include "watch.hpp"

namespace elman {

namespace nb = nanobind;

class Stream {
public:
    // weights: "", "bfloat16" or "int8". inputs: for each sequence, outputs: for each emit: (dtype, NumPy's dtype, its letters,
    // sizes of a row, whether each row has one). threads: a function that says how many there may be.
    // failed: makes the error for what an operation met. empty_strided: memory for a tensor of these sizes, strides and dtype.
    Stream(const Kernels& kernels, bool wide, const Program& program, const std::string& weights, int64_t constants, const nb::list& inputs,
           const nb::list& outputs, const nb::object& threads, const nb::object& failed, const nb::object& empty_strided, const bool& poison)
        : set_(&kernels), kernels_(&kernels), wide_(wide), narrow_(!weights.empty()), program_(program), threads_(threads), failed_(failed), empty_tensor_(empty_strided), poison_(&poison), prepare_(program.prepare, program.prepare + program.prepares),
          ops_(program.ops, program.ops + program.count), buffers_(program.buffers, program.buffers + program.buffer_count),
          states_(program.states, program.states + program.state_count), constants_(size_t(constants)) {
        if (!weights.empty()) narrow(weights == "int8");
        program_.prepare = prepare_.data(), program_.ops = ops_.data(), program_.buffers = buffers_.data(), program_.states = states_.data();
        prepared_ = Lines(program_.prepared_bytes);
        for (const nb::handle form : inputs) inputs_.push_back(leaf(form));
        for (const nb::handle form : outputs) outputs_.push_back(leaf(form));
        const nb::module_ torch = nb::module_::import_("torch"), numpy = nb::module_::import_("numpy");
        tensor_ = torch.attr("Tensor"), array_ = numpy.attr("ndarray"), empty_array_ = numpy.attr("empty");
        at_.resize(size_t(constants) + inputs_.size() + outputs_.size() + 2 * states_.size());
        resize(0);
    }

    // --- what does not change ---------------------------------------------------------------------------------------------

    // constants: their tensors, in order, of which the caller says that they lie in order; strides: elements from row to row.
    // sources: (dict, key, tensor) or (None, None, tensor) for each that constants are made of; what is no tensor has to be
    // what the dict holds. unchanged: a function. Packs the weights.
    void load(const nb::tuple& constants, const std::vector<int64_t>& strides, const nb::list& sources, const nb::object& unchanged) {
        idle();
        if (nb::len(constants) != constants_.size() || strides.size() != constants_.size()) throw std::invalid_argument("a wrong number of constants");
        loaded_ = false;
        kept_ = nb::list();
        kept_.append(constants), kept_.append(sources), kept_.append(unchanged);
        unchanged_ = unchanged.is_none() ? nullptr : unchanged.ptr();
        const nb::object owner = nb::getattr(unchanged, "__self__", nb::none()), method = nb::getattr(unchanged, "__func__", nb::none());
        watch_ = nb::isinstance<Watch>(owner) && method.is(nb::type<Watch>().attr("same")) ? nb::inst_ptr<Watch>(owner) : nullptr;
        for (size_t i = 0; i < constants_.size(); i++) constants_[i] = {address(PyTuple_GET_ITEM(constants.ptr(), Py_ssize_t(i))), strides[i]};
        sources_.clear();
        for (const nb::handle item : sources) {
            const nb::object store = nb::borrow(item[0]), key = nb::borrow(item[1]), tensor = nb::borrow(item[2]);
            kept_.append(store), kept_.append(key), kept_.append(tensor);
            const bool has = nb::isinstance(tensor, tensor_);
            sources_.push_back({store.is_none() ? nullptr : store.ptr(), key.ptr(), tensor.ptr(), has ? version(tensor.ptr()) : 0, has ? address(tensor.ptr()) : nullptr});
        }
        locate_ = locator();
        for (const Source& s : sources_)
            if (locate_ && s.data && located(s.tensor) != s.data) locate_ = nullptr;
        kernels_ = narrow_ ? set_ : &of_now(*set_), threads_now_ = -1;
        Call call = called();
        const Failure failure = (wide_ ? kernels_->prepare64 : kernels_->prepare32)(program_, call, prepared_.at());
        if (failure.happened) raise(failure);
        loaded_ = true;
    }

    // Whether constants are what they were, as far as that can be seen.
    bool fresh() {
        if (!loaded_) return false;
        for (const Source& s : sources_) {
            if (s.store && !s.stored()) return false;
            if (s.data && (version(s.tensor) != s.version || located(s.tensor) != s.data)) return false;
        }
        if (watch_) return watch_->same();
        if (!unchanged_) return true;
        const nb::object same = nb::steal(PyObject_CallNoArgs(unchanged_));
        if (!same.is_valid()) throw nb::python_error();
        return same.ptr() == Py_True;
    }

    // --- rows ---------------------------------------------------------------------------------------------------------------

    int64_t rows() const { return rows_; }

    // The first rows stay as they are; new ones hold nothing yet.
    void resize(int64_t rows) {
        idle();
        if (rows > room_) {
            const int64_t room = rows > 2 * room_ ? rows : 2 * room_;
            now_.resize(states_.size()), next_.resize(states_.size());
            for (size_t i = 0; i < states_.size(); i++) {
                const int64_t width = states_[i].width * states_[i].bytes;
                Lines larger(room * width);
                std::memcpy(larger.at(), now_[i].at(), size_t(rows_ * width));
                now_[i] = std::move(larger), next_[i] = Lines(room * width);
            }
            room_ = room;
        }
        rows_ = rows;
        workspace_ = Lines(0), threads_now_ = -1;
        for (std::vector<Leaf>* leaves : {&inputs_, &outputs_})
            for (Leaf& leaf : *leaves) leaf.shape.reset(), leaf.tensor.reset(), leaf.array.reset(), leaf.formed = false;
    }

    // Copies `count` rows of state i, from `first` on, out of or into a contiguous tensor.
    void read(size_t i, int64_t first, int64_t count, nb::handle to) { move(i, first, count, to, false); }
    void write(size_t i, int64_t first, int64_t count, nb::handle from) { move(i, first, count, from, true); }

    // Without these rows, ascending: those behind them move up.
    void drop(const std::vector<int64_t>& gone) {
        idle();
        for (size_t i = 0; i < gone.size(); i++)
            if (gone[i] < (i ? gone[i - 1] + 1 : 0) || gone[i] >= rows_) throw std::invalid_argument("rows that are not there, or not in order");
        for (size_t i = 0; i < states_.size(); i++) {
            const int64_t width = states_[i].width * states_[i].bytes;
            int64_t to = 0, from = 0;
            auto keep = [&](int64_t stop) {
                if (to != from) std::memmove(now_[i].at() + to * width, now_[i].at() + from * width, size_t((stop - from) * width));
                to += stop - from;
            };
            for (const int64_t row : gone) keep(row), from = row + 1;
            keep(rows_);
        }
        resize(rows_ - int64_t(gone.size()));
    }

    // --- a step -------------------------------------------------------------------------------------------------------------

    // xs: for each sequence. out: for each emit, or None for new ones, arrays where the first of xs is one. One that is alone
    // may stand for a tuple of it.
    // Gives the emits, alone or a tuple; False where anything is not as it has to be, and nothing was done.
    nb::object step(nb::handle xs, nb::handle out) {
        idle();
        const Turn turn(running_);
        if (!fresh() || !rows_) return nb::bool_(false);
        Views views(inputs_.size() + outputs_.size());
        Pointer* at = at_.data() + constants_.size();
        bool arrays = false;
        if (PyTuple_Check(xs.ptr()) && size_t(PyTuple_GET_SIZE(xs.ptr())) != inputs_.size()) return nb::bool_(false);
        if (!PyTuple_Check(xs.ptr()) && inputs_.size() != 1) return nb::bool_(false);
        for (size_t i = 0; i < inputs_.size(); i++) {
            PyObject* value = PyTuple_Check(xs.ptr()) ? PyTuple_GET_ITEM(xs.ptr(), Py_ssize_t(i)) : xs.ptr();
            if (i == 0) arrays = is_array(value);
            *at = {find(value, inputs_[i], views, false), inputs_[i].width};
            if (!at++->data) return nb::bool_(false);
        }
        const size_t states = states_.size();
        Pointer *emits = at + states, *finals = emits + outputs_.size();
        for (size_t i = 0; i < states; i++) at[i] = {now_[i].at(), states_[i].width}, finals[i] = {next_[i].at(), 0};
        nb::object made;
        if (!results(out, arrays, made, emits, views) || (!out.is_none() && overlap(at - inputs_.size(), emits))) return nb::bool_(false);
        Call call = called();
        if (program_.work * rows_ >= 1 << 19) {
            const nb::object threads = nb::steal(PyObject_CallNoArgs(threads_.ptr()));
            if (!threads.is_valid()) throw nb::python_error();
            call.threads = int(nb::cast<int64_t>(threads));
        }
        if (call.threads != threads_now_) {
            workspace_ = Lines(kernels_->workspace(program_, call)), threads_now_ = call.threads;
        }
        Failure failure;
        if (program_.work * rows_ < ALONE) {
            failure = run(call);
        } else {
            nb::gil_scoped_release release;
            failure = run(call);
        }
        if (failure.happened) raise(failure);
        now_.swap(next_), back_ = !back_;
        return made;
    }

    // For the garbage collector.
    static int traverse(PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        if (nb::inst_ready(self)) Py_VISIT(nb::inst_ptr<Stream>(self)->kept_.ptr());
        return 0;
    }

    static int clear(PyObject* self) {
        if (!nb::inst_ready(self)) return 0;
        Stream& stream = *nb::inst_ptr<Stream>(self);
        stream.loaded_ = false, stream.unchanged_ = nullptr, stream.watch_ = nullptr, stream.sources_.clear();
        stream.kept_ = nb::list();
        return 0;
    }

private:
    // A step from its first question to its new state. Set and read under Python's lock, which others may get in between.
    struct Turn {
        bool& running;

        explicit Turn(bool& flag) : running(flag) { running = true; }
        ~Turn() { running = false; }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
    };

    // What a step reads or writes.
    struct Leaf {
        nb::object dtype, array_dtype;
        std::string letters;           // of NumPy's format, any of them
        int64_t bytes = 0, width = 1;  // of an element; elements of a row
        std::vector<int64_t> sizes;    // of a row
        bool rows = true;
        nb::object shape, tensor, array;  // with as many rows as there are now: a tuple, and what new ones are made of
        Form form;                        // of such a tensor
        bool formed = false;
    };

    struct Source {
        PyObject *store, *key, *tensor;
        int64_t version;
        char* data;
        mutable uint64_t edition = 0;  // of the store, in which it last held the tensor

        bool stored() const {
            const uint64_t now = edition_of(store);
            if (now && now == edition) return true;
            if (PyDict_GetItem(store, key) != tensor) return false;
            edition = now;
            return true;
        }
    };

    // The memory of arrays, held as long as a step runs.
    struct Views {
        std::vector<Py_buffer> held;

        explicit Views(size_t most) { held.reserve(most); }
        ~Views() {
            for (Py_buffer& view : held) PyBuffer_Release(&view);
        }

        const Py_buffer* of(PyObject* array, int flags) {
            Py_buffer view;
            if (PyObject_GetBuffer(array, &view, flags) != 0) return PyErr_Clear(), nullptr;
            held.push_back(view);
            return &held.back();
        }
    };

    struct Words {
        PyObject* dtype = PyUnicode_InternFromString("dtype");
        PyObject* shape = PyUnicode_InternFromString("shape");
        PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
    };

    static const Words& words() {
        static const Words& made = *new Words;
        return made;
    }

    static nb::object got(PyObject* of, PyObject* name) {
        PyObject* found = PyObject_GetAttr(of, name);
        if (!found) throw nb::python_error();
        return nb::steal(found);
    }

    // How often a tensor was written to; -1 for one that does not count.
    static int64_t version(PyObject* tensor) {
        static const Attribute* made = nullptr;
        PyObject* found = Attribute::once(made, "_version").of(tensor);
        if (!found) return PyErr_Clear(), -1;
        return PyLong_AsLongLong(nb::steal(found).ptr());
    }

    char* located(PyObject* tensor) const { return locate_ ? static_cast<char*>(locate_(tensor)) : address(tensor); }

    static Leaf leaf(nb::handle form) {
        Leaf made;
        made.dtype = nb::borrow(form[0]), made.array_dtype = nb::borrow(form[1]), made.letters = nb::cast<std::string>(form[2]);
        made.sizes = nb::cast<std::vector<int64_t>>(form[3]), made.rows = nb::cast<bool>(form[4]);
        made.bytes = nb::cast<int64_t>(made.array_dtype.attr("itemsize"));
        for (const int64_t size : made.sizes) made.width *= size;
        return made;
    }

    void idle() const {
        if (running_) throw std::runtime_error("a stream runs one step at a time: each thread needs a stream of its own");
    }

    [[noreturn]] void raise(const Failure& failure) const {
        const nb::object error = failed_(failure.index, failure.size, failure.behind);
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
        throw nb::python_error();
    }

    // Weights that are packed become narrower, and what is prepared moves together.
    void narrow(bool bytes) {
        std::vector<int64_t> sizes(buffers_.size());
        for (size_t b = 0; b < buffers_.size(); b++) sizes[b] = buffers_[b].width * buffers_[b].bytes;
        std::vector<bool> packed(buffers_.size());
        const Code code = bytes ? code_product_int8 : code_product_bfloat16;
        for (Op& op : prepare_)
            if (op.code == code_product && op.k > 0) {
                const size_t b = size_t(op.operand[0].buffer);
                const int64_t columns = buffers_[b].width / op.k;
                op.code = code, packed[b] = true;
                sizes[b] = bytes ? ((op.k + 1) / 2 * 2 + 4) * columns : 2 * op.k * columns;
            }
        for (Op& op : ops_)
            if (op.code == code_product && op.k > 0 && packed[size_t(op.operand[3].buffer)]) op.code = code;
        int64_t end = 0;
        for (size_t b = 0; b < buffers_.size(); b++)
            if (buffers_[b].kind == prepared) buffers_[b].offset = end, end += (sizes[b] + LINE - 1) / LINE * LINE;
        program_.prepared_bytes = end;
    }

    void move(size_t i, int64_t first, int64_t count, nb::handle tensor, bool in) {
        idle();
        if (i >= states_.size() || first < 0 || count < 0 || first + count > rows_) throw std::invalid_argument("rows that are not there");
        const int64_t width = states_[i].width * states_[i].bytes;
        char *mine = now_[i].at() + first * width, *other = address(tensor.ptr());
        if (count && width) std::memcpy(in ? mine : other, in ? other : mine, size_t(count * width));
    }

    Call called() {
        Call call = {};
        call.poison = *poison_, call.steps = 1, call.batch = rows_, call.threads = 1, call.back = back_, call.prepared = prepared_.at();
        call.constants = at_.data();
        call.sequences = at_.data() + constants_.size();
        call.starts = call.sequences + inputs_.size();
        call.emits = call.starts + states_.size();
        call.finals = call.emits + outputs_.size();
        std::copy(constants_.begin(), constants_.end(), at_.begin());
        return call;
    }

    Failure run(const Call& call) const { return (wide_ ? kernels_->run64 : kernels_->run32)(program_, call, workspace_.at()); }

    // Its shape, with as many rows as there are now.
    nb::object& shape(Leaf& leaf) const {
        if (!leaf.shape.is_valid()) {
            nb::list sizes;
            if (leaf.rows) sizes.append(rows_);
            for (const int64_t size : leaf.sizes) sizes.append(size);
            leaf.shape = nb::tuple(sizes);
        }
        return leaf.shape;
    }

    // Where a tensor or an array has its numbers, if it is of this form and they lie in order; else null.
    char* find(PyObject* value, Leaf& leaf, Views& views, bool written) const {
        if (is_tensor(value)) {
            Described now;
            if (describe(value, now)) {
                if (!form(leaf).is(now) || !now.in_order() || wants_gradient(value) || is_negative(value)) return nullptr;
                return is_unwritten(value, now.data) ? nullptr : now.data;
            }
            if (got(value, words().dtype).ptr() != leaf.dtype.ptr() || got(value, words().is_cpu).ptr() != Py_True) return nullptr;
            if (PyObject_RichCompareBool(got(value, words().shape).ptr(), shape(leaf).ptr(), Py_EQ) != 1) return nullptr;
            if (wants_gradient(value) || !is_contiguous(value) || is_negative(value)) return nullptr;
            char* const data = address(value);
            return is_unwritten(value, data) ? nullptr : data;
        }
        if (!is_array(value)) return nullptr;
        const bool usual = got(value, words().dtype).ptr() == leaf.array_dtype.ptr();  // else a letter says it, which takes longer
        const Py_buffer* view = views.of(value, PyBUF_C_CONTIGUOUS | (usual ? 0 : PyBUF_FORMAT) | (written ? PyBUF_WRITABLE : 0));
        if (!view || view->itemsize != leaf.bytes) return nullptr;
        if (!usual && (!view->format || !view->format[0] || view->format[1] || leaf.letters.find(view->format[0]) == std::string::npos)) return nullptr;
        const size_t lead = leaf.rows ? 1 : 0;
        if (size_t(view->ndim) != leaf.sizes.size() + lead) return nullptr;
        if (lead && view->shape[0] != rows_) return nullptr;
        for (size_t d = 0; d < leaf.sizes.size(); d++)
            if (view->shape[d + lead] != leaf.sizes[d]) return nullptr;
        return static_cast<char*>(view->buf);
    }

    // As tensors are described, where they can be.
    const Form& form(Leaf& leaf) const {
        if (!leaf.formed) leaf.form.of(empty(leaf, false).ptr()), leaf.formed = true;
        return leaf.form;
    }

    // A new tensor or array of this form.
    nb::object empty(Leaf& leaf, bool array) const {
        nb::object& arguments = array ? leaf.array : leaf.tensor;
        if (!arguments.is_valid() && array) arguments = nb::make_tuple(shape(leaf), leaf.array_dtype);
        if (!arguments.is_valid()) {
            std::vector<int64_t> sizes = leaf.sizes;
            if (leaf.rows) sizes.insert(sizes.begin(), rows_);
            arguments = new_in_order(sizes.data(), sizes.size(), leaf.dtype.ptr());
        }
        return made_by((array ? empty_array_ : empty_tensor_).ptr(), arguments);
    }

    // Memory for the emits, what the caller gave or new, and what a step gives. False where it is not of their forms.
    bool results(nb::handle out, bool arrays, nb::object& made, Pointer* at, Views& views) {
        const bool alone = outputs_.size() == 1, given = !out.is_none(), tuple = given && PyTuple_Check(out.ptr());
        if (given) {
            if (tuple ? size_t(PyTuple_GET_SIZE(out.ptr())) != outputs_.size() : !alone) return false;
            made = nb::borrow(out);
        } else if (!alone) {
            made = nb::steal(PyTuple_New(Py_ssize_t(outputs_.size())));
        }
        for (size_t i = 0; i < outputs_.size(); i++, at++) {
            if (given) {
                PyObject* value = tuple ? PyTuple_GET_ITEM(out.ptr(), Py_ssize_t(i)) : out.ptr();
                *at = {find(value, outputs_[i], views, true), 0};
                if (!at->data) return false;
                continue;
            }
            nb::object fresh = empty(outputs_[i], arrays);
            *at = {arrays ? static_cast<char*>(views.of(fresh.ptr(), PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)->buf) : address(fresh.ptr()), 0};
            if (alone)
                made = std::move(fresh);
            else
                PyTuple_SET_ITEM(made.ptr(), Py_ssize_t(i), fresh.release().ptr());
        }
        return true;
    }

    // Whether what is written lies where something else is read or written.
    bool overlap(const Pointer* read, const Pointer* written) const {
        auto end = [&](const Pointer& at, const Leaf& leaf) { return at.data + (leaf.rows ? rows_ : 1) * leaf.width * leaf.bytes; };
        for (size_t i = 0; i < outputs_.size(); i++) {
            const char* stop = end(written[i], outputs_[i]);
            for (size_t j = 0; j < inputs_.size(); j++)
                if (read[j].data < stop && written[i].data < end(read[j], inputs_[j])) return true;
            for (size_t j = 0; j < i; j++)
                if (written[j].data < stop && written[i].data < end(written[j], outputs_[j])) return true;
        }
        return false;
    }

    bool is_tensor(PyObject* value) const { return Py_TYPE(value) == reinterpret_cast<PyTypeObject*>(tensor_.ptr()); }
    bool is_array(PyObject* value) const { return Py_TYPE(value) == reinterpret_cast<PyTypeObject*>(array_.ptr()); }

    const Kernels *set_, *kernels_;  // of the instruction set; and those that have packed the weights
    bool wide_, narrow_;  // narrow: weights in fewer bits
    Program program_;
    nb::object threads_, failed_, tensor_, array_, empty_tensor_, empty_array_;
    const bool* poison_;
    std::vector<Op> prepare_, ops_;
    std::vector<Buffer> buffers_;
    std::vector<State> states_;
    std::vector<Leaf> inputs_, outputs_;
    Lines prepared_, workspace_;
    std::vector<Lines> now_, next_;  // of each state: what it is, and where a step writes what it becomes
    int64_t rows_ = 0, room_ = -1;   // rows there are, and may be
    int threads_now_ = -1;           // for which there is a workspace
    std::vector<Pointer> constants_, at_;
    std::vector<Source> sources_;
    PyObject* unchanged_ = nullptr;
    const Watch* watch_ = nullptr;  // whose `same` that is
    Locate locate_ = nullptr;
    nb::list kept_;  // all Python objects that may be part of a circle
    bool loaded_ = false, running_ = false, back_ = false;  // back_: of the next step
};

inline void bind_stream(nb::module_& m) {
    static PyType_Slot slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(&Stream::traverse)}, {Py_tp_clear, reinterpret_cast<void*>(&Stream::clear)}, {0, nullptr}};
    nb::class_<Stream>(m, "Stream", nb::type_slots(slots))
        .def("load", &Stream::load, nb::arg("constants"), nb::arg("strides"), nb::arg("sources"), nb::arg("unchanged").none())
        .def("fresh", &Stream::fresh)
        .def("rows", &Stream::rows)
        .def("resize", &Stream::resize, nb::arg("rows"))
        .def("read", &Stream::read, nb::arg("state"), nb::arg("first"), nb::arg("count"), nb::arg("to"))
        .def("write", &Stream::write, nb::arg("state"), nb::arg("first"), nb::arg("count"), nb::arg("source"))
        .def("drop", &Stream::drop, nb::arg("rows"))
        .def("step", &Stream::step, nb::arg("xs"), nb::arg("out").none());
}

}  // namespace elman
