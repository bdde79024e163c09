// Tensors and arrays of the forms that a stream was told: where their numbers lie, and new ones.
//
// Part of stream.hpp.
#pragma once

#include <string>
#include <vector>

#include "tensors.hpp"

namespace elman {

namespace nb = nanobind;

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

class Leaves {
public:
    // empty_strided: memory for a tensor of these sizes, strides and dtype.
    explicit Leaves(const nb::object& empty_strided) : empty_tensor_(empty_strided) {
        const nb::module_ torch = nb::module_::import_("torch"), numpy = nb::module_::import_("numpy");
        written_ = torch.attr("autograd").attr("graph").attr("increment_version"), tensor_ = torch.attr("Tensor"), array_ = numpy.attr("ndarray"), empty_array_ = numpy.attr("empty");
    }

    int64_t rows = 0;

    static Leaf leaf(nb::handle form) {
        Leaf made;
        made.dtype = nb::borrow(form[0]), made.array_dtype = nb::borrow(form[1]), made.letters = nb::cast<std::string>(form[2]);
        made.sizes = nb::cast<std::vector<int64_t>>(form[3]), made.rows = nb::cast<bool>(form[4]);
        made.bytes = nb::cast<int64_t>(made.array_dtype.attr("itemsize"));
        for (const int64_t size : made.sizes) made.width *= size;
        return made;
    }

    const nb::object& tensor_class() const { return tensor_; }
    bool is_tensor(PyObject* value) const { return Py_TYPE(value) == reinterpret_cast<PyTypeObject*>(tensor_.ptr()); }
    bool is_array(PyObject* value) const { return Py_TYPE(value) == reinterpret_cast<PyTypeObject*>(array_.ptr()); }

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
            try {
                char* const data = address(value);
                return is_unwritten(value, data) ? nullptr : data;
            } catch (nb::python_error&) {  // what torch.func wraps has no memory
                return nullptr;
            }
        }
        if (!is_array(value)) return nullptr;
        const bool usual = got(value, words().dtype).ptr() == leaf.array_dtype.ptr();  // else a letter says it, which takes longer
        const Py_buffer* view = views.of(value, PyBUF_C_CONTIGUOUS | (usual ? 0 : PyBUF_FORMAT) | (written ? PyBUF_WRITABLE : 0));
        if (!view || view->itemsize != leaf.bytes) return nullptr;
        if (!usual && (!view->format || !view->format[0] || view->format[1] || leaf.letters.find(view->format[0]) == std::string::npos)) return nullptr;
        const size_t lead = leaf.rows ? 1 : 0;
        if (size_t(view->ndim) != leaf.sizes.size() + lead) return nullptr;
        if (lead && view->shape[0] != rows) return nullptr;
        for (size_t d = 0; d < leaf.sizes.size(); d++)
            if (view->shape[d + lead] != leaf.sizes[d]) return nullptr;
        return static_cast<char*>(view->buf);
    }

    // For autograd, which counts what is written into a tensor.
    void count_write(PyObject* tensor) const {
        if (!nb::steal(PyObject_CallOneArg(written_.ptr(), tensor)).is_valid()) throw nb::python_error();
    }

    // A new tensor or array of this form.
    nb::object empty(Leaf& leaf, bool array) const {
        nb::object& arguments = array ? leaf.array : leaf.tensor;
        if (!arguments.is_valid() && array) arguments = nb::make_tuple(shape(leaf), leaf.array_dtype);
        if (!arguments.is_valid()) {
            std::vector<int64_t> sizes = leaf.sizes;
            if (leaf.rows) sizes.insert(sizes.begin(), rows);
            arguments = new_in_order(sizes.data(), sizes.size(), leaf.dtype.ptr());
        }
        return made_by((array ? empty_array_ : empty_tensor_).ptr(), arguments);
    }

private:
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

    // Its shape, with as many rows as there are now.
    nb::object& shape(Leaf& leaf) const {
        if (!leaf.shape.is_valid()) {
            nb::list sizes;
            if (leaf.rows) sizes.append(rows);
            for (const int64_t size : leaf.sizes) sizes.append(size);
            leaf.shape = nb::tuple(sizes);
        }
        return leaf.shape;
    }

    // As tensors are described, where they can be.
    const Form& form(Leaf& leaf) const {
        if (!leaf.formed) leaf.form.of(empty(leaf, false).ptr()), leaf.formed = true;
        return leaf.form;
    }

    nb::object written_, tensor_, array_, empty_tensor_, empty_array_;
};

}  // namespace elman
