// A call that has come before: compared with it and handed on, without a line of Python between.
//
// Part of bind.cpp, behind pass.hpp.
#pragma once

#include "watch.hpp"

namespace elman {
namespace {

class Again {
public:
    // checks: functions that have to say True. answers: (function, what it has to return, by identity). names: (dict, key,
    // value), by identity. target: called with `head` and the tensors of a call; a Pass without a step of Python.
    // tensors: for each input the cell's own tensor, None, or a number: that tensor of the arguments. arguments: x's and
    // the state's tensors as they were, each alone, in a tuple, or None. start: a function that gives the state where no call
    // brings one, or None. free: leading dimensions of x that may be of other sizes. wants: whether one of the inputs has to want
    // a gradient.
    Again(const nb::list& checks, const nb::list& answers, const nb::list& names, const nb::object& target, const nb::tuple& head, const nb::list& tensors,
          const nb::tuple& arguments, const nb::object& start, int free, bool wants)
        : head_(nb::len(head)), free_(free), wants_(wants), start_(start.is_none() ? nullptr : start.ptr()) {
        for (const nb::object& one : {nb::object(checks), nb::object(answers), nb::object(names), target, nb::object(head), nb::object(tensors), start})
            kept_.append(one);
        for (const nb::handle check : checks) checks_.push_back(check.ptr());
        for (const nb::handle one : answers) answers_.push_back({nb::borrow(one[0]).ptr(), nb::borrow(one[1]).ptr()});
        for (const nb::handle one : names) names_.push_back({nb::borrow(one[0]).ptr(), nb::borrow(one[1]).ptr(), nb::borrow(one[2]).ptr()});
        target_ = target.ptr();
        if (nb::isinstance<Pass>(target)) pass_ = &nb::cast<Pass&>(target);
        tensor_ = nb::module_::import_("torch").attr("Tensor").ptr();  // a class that stays
        for (const nb::handle part : head) inputs_.push_back({part.ptr(), -1});
        for (const nb::handle one : tensors) {
            const bool given = PyLong_Check(one.ptr());
            inputs_.push_back({one.ptr(), given ? nb::cast<int64_t>(one) : -1});
        }
        for (const nb::handle value : arguments) parts_.push_back(part(value.ptr()));
        for (const Input& input : inputs_)
            if (input.number >= int64_t(forms_.size())) throw std::invalid_argument("a tensor that no argument has");
    }

    // What the target gives; None where the call is not like the one that this was made for: then nothing was done, but that
    // a start is asked for once more where it has come to look different.
    nb::object operator()(nb::handle x, nb::handle state) const {
        for (const auto& [dict, key, value] : names_)
            if (PyDict_GetItem(dict, key) != value) return nb::none();
        for (const auto& [function, answer] : answers_)
            if (answer_of(function).ptr() != answer) return nb::none();
        // Behind these: a tensor of torch.func has no memory to describe, and PyTorch takes milliseconds to say so.
        PyObject* given[MOST];
        size_t count = 0;
        if (!take(x.ptr(), parts_[0], given, count, free_) || (start_ ? !state.is_none() : !take(state.ptr(), parts_[1], given, count))) return nb::none();
        for (PyObject* check : checks_)
            if (answer_of(check).ptr() != Py_True) return nb::none();
        const nb::object begun = start_ ? answer_of(start_) : nb::none();
        if (start_ && !take(begun.ptr(), parts_[1], given, count)) return nb::none();
        nb::object arguments = nb::steal(PyTuple_New(Py_ssize_t(inputs_.size())));
        bool flows = !wants_;
        for (size_t i = 0; i < inputs_.size(); i++) {
            PyObject* value = inputs_[i].number < 0 ? inputs_[i].value : given[inputs_[i].number];
            if (!flows && i >= head_ && value != Py_None) flows = wants_gradient(value);
            Py_INCREF(value);
            PyTuple_SET_ITEM(arguments.ptr(), Py_ssize_t(i), value);
        }
        if (!flows) return nb::none();
        if (pass_) return pass_->run(nb::borrow<nb::args>(arguments));
        nb::object results = nb::steal(PyObject_CallObject(target_, arguments.ptr()));
        if (!results.is_valid()) throw nb::python_error();
        return results;
    }

    // For the garbage collector.
    static int traverse(PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        if (nb::inst_ready(self)) Py_VISIT(nb::inst_ptr<Again>(self)->kept_.ptr());
        return 0;
    }

    static int clear(PyObject* self) {
        if (!nb::inst_ready(self)) return 0;
        Again& again = *nb::inst_ptr<Again>(self);
        again.names_.clear(), again.answers_.clear(), again.checks_.clear();  // what holds these is given up
        again.parts_ = {{-1}, {-1}}, again.kept_ = nb::list();                // it serves no call any more
        return 0;
    }

private:
    static constexpr size_t MOST = 16;  // tensors of arguments

    // How many tensors a tuple has; ALONE, NOTHING, or -1 for what nothing is like.
    struct Part {
        int64_t count;
    };
    static constexpr int64_t ALONE = -2, NOTHING = -3;

    struct Input {
        PyObject* value;
        int64_t number;  // of a tensor of the arguments, or -1
    };

    struct Named {
        PyObject *dict, *key, *value;
    };

    bool is_tensor(PyObject* value) const { return reinterpret_cast<PyObject*>(Py_TYPE(value)) == tensor_; }

    Part part(PyObject* value) {
        if (value == Py_None) return {NOTHING};
        const bool alone = is_tensor(value);
        if (!alone && !PyTuple_CheckExact(value)) throw std::invalid_argument("an argument that is nested otherwise");
        const Py_ssize_t count = alone ? 1 : PyTuple_GET_SIZE(value);
        for (Py_ssize_t i = 0; i < count; i++) {
            PyObject* tensor = alone ? value : PyTuple_GET_ITEM(value, i);
            Form form;
            if (!is_tensor(tensor) || !form.of(tensor) || forms_.size() == MOST) throw std::invalid_argument("an argument that cannot be described");
            forms_.push_back(form);
        }
        return {alone ? ALONE : count};
    }

    // Puts the tensors of an argument behind those that are there. False where it is not like the one that was.
    bool take(PyObject* value, const Part& part, PyObject** given, size_t& count, int32_t free = 0) const {
        if (part.count == NOTHING) return value == Py_None;
        if (part.count == ALONE) {
            given[count] = value;
            return is_tensor(value) && forms_[count++].is_of(value, free);
        }
        if (part.count < 0 || !PyTuple_CheckExact(value) || PyTuple_GET_SIZE(value) != part.count) return false;
        for (Py_ssize_t i = 0; i < part.count; i++) {
            PyObject* tensor = PyTuple_GET_ITEM(value, i);
            if (!is_tensor(tensor) || !forms_[count].is_of(tensor, free)) return false;
            given[count++] = tensor;
        }
        return true;
    }

    size_t head_;
    int32_t free_;
    bool wants_;
    PyObject *start_, *target_, *tensor_;
    Pass* pass_ = nullptr;
    std::vector<PyObject*> checks_;
    std::vector<std::pair<PyObject*, PyObject*>> answers_;
    std::vector<Named> names_;
    std::vector<Input> inputs_;
    std::vector<Part> parts_;
    std::vector<Form> forms_;
    nb::list kept_;  // all Python objects that may be part of a circle
};

}  // namespace
}  // namespace elman
