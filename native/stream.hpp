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

#include "leaves.hpp"
#include "lines.hpp"
#include "program.hpp"
#include "sets.hpp"
#include "sources.hpp"

namespace elman {

namespace nb = nanobind;

class Stream {
public:
    // weights: "", "bfloat16" or "int8". inputs: for each sequence, outputs: for each emit: (dtype, NumPy's dtype, its letters,
    // sizes of a row, whether each row has one). threads: a function that says how many there may be.
    // failed: makes the error for what an operation met. empty_strided: memory for a tensor of these sizes, strides and dtype.
    Stream(const Kernels& kernels, bool wide, const Program& program, const std::string& weights, int64_t constants, const nb::list& inputs,
           const nb::list& outputs, const nb::object& threads, const nb::object& failed, const nb::object& empty_strided, const bool& poison)
        : set_(&kernels), kernels_(&kernels), wide_(wide), narrow_(!weights.empty()), program_(program), threads_(threads), failed_(failed), leaves_(empty_strided), poison_(&poison), prepare_(program.prepare, program.prepare + program.prepares),
          ops_(program.ops, program.ops + program.count), buffers_(program.buffers, program.buffers + program.buffer_count),
          states_(program.states, program.states + program.state_count), constants_(size_t(constants)) {
        if (!weights.empty()) narrow(weights == "int8");
        program_.prepare = prepare_.data(), program_.ops = ops_.data(), program_.buffers = buffers_.data(), program_.states = states_.data();
        prepared_ = Lines(program_.prepared_bytes);
        for (const nb::handle form : inputs) inputs_.push_back(Leaves::leaf(form));
        for (const nb::handle form : outputs) outputs_.push_back(Leaves::leaf(form));
        at_.resize(size_t(constants) + inputs_.size() + outputs_.size() + 2 * states_.size());
        resize(0);
    }

    // --- what does not change ---------------------------------------------------------------------------------------------

    // constants: their tensors, in order, of which the caller says that they lie in order; strides: elements from row to row.
    // sources: (dict, key, tensor) or (None, None, tensor) for each that constants are made of; what is no tensor has to be
    // what the dict holds; (dict, key) where it holds nothing; (None, function, answer) for what a function has to say.
    // unchanged: a function. Packs the weights.
    void load(const nb::tuple& constants, const std::vector<int64_t>& strides, const nb::list& sources, const nb::object& unchanged) {
        idle();
        if (nb::len(constants) != constants_.size() || strides.size() != constants_.size()) throw std::invalid_argument("a wrong number of constants");
        loaded_ = false;
        kept_ = nb::list();
        kept_.append(constants);
        sources_.load(sources, unchanged, leaves_.tensor_class(), kept_);
        for (size_t i = 0; i < constants_.size(); i++) constants_[i] = {address(PyTuple_GET_ITEM(constants.ptr(), Py_ssize_t(i))), strides[i]};
        kernels_ = narrow_ ? set_ : &of_now(*set_), threads_now_ = -1;
        Call call = called();
        const Failure failure = (wide_ ? kernels_->prepare64 : kernels_->prepare32)(program_, call, prepared_.at());
        if (failure.happened) raise(failure);
        loaded_ = true;
    }

    // Whether constants are what they were, as far as that can be seen.
    bool fresh() const { return loaded_ && sources_.same(); }

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
        rows_ = leaves_.rows = rows;
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
            if (i == 0) arrays = leaves_.is_array(value);
            *at = {leaves_.find(value, inputs_[i], views, false), inputs_[i].width};
            if (!at++->data) return nb::bool_(false);
        }
        const size_t states = states_.size();
        Pointer *emits = at + states, *finals = emits + outputs_.size();
        for (size_t i = 0; i < states; i++) at[i] = {now_[i].at(), states_[i].width}, finals[i] = {next_[i].at(), 0};
        nb::object made;
        if (!results(out, arrays, made, emits, views) || (!out.is_none() && overlap(at - inputs_.size(), emits))) return nb::bool_(false);
        Call call = called();
        if (program_.work * rows_ >= 1 << 19) {
            call.threads = int(nb::cast<int64_t>(answer_of(threads_.ptr())));
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
        stream.loaded_ = false, stream.sources_.clear();
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
                *at = {leaves_.find(value, outputs_[i], views, true), 0};
                if (!at->data) return false;
                if (leaves_.is_tensor(value)) leaves_.count_write(value);
                continue;
            }
            nb::object fresh = leaves_.empty(outputs_[i], arrays);
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

    const Kernels *set_, *kernels_;  // of the instruction set; and those that have packed the weights
    bool wide_, narrow_;  // narrow: weights in fewer bits
    Program program_;
    nb::object threads_, failed_;
    Leaves leaves_;
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
    Sources sources_;
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
