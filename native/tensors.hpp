// What is asked of tensors, by their own methods: nothing here is linked to PyTorch.
#pragma once

#include "python.hpp"

#include <cstdint>

namespace elman {

namespace nb = nanobind;

namespace {

// What is asked of a torch.Tensor: it calls the methods that Python code would call.
struct Asked {
    PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
    PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
    PyObject* size = PyUnicode_InternFromString("size");
    PyObject* stride = PyUnicode_InternFromString("stride");
    PyObject* is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* resolve_neg = PyUnicode_InternFromString("resolve_neg");
    PyObject* copy_ = PyUnicode_InternFromString("copy_");
};

const Asked& asked() {
    static const Asked& made = *new Asked;
    return made;
}

nb::object ask(PyObject* tensor, PyObject* method) {
    PyObject* found = PyObject_CallMethodNoArgs(tensor, method);
    if (!found) throw nb::python_error();
    return nb::steal(found);
}

char* address(PyObject* tensor) {
    const nb::object found = ask(tensor, asked().data_ptr);
    const int64_t value = PyLong_AsLongLong(found.ptr());
    if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    return reinterpret_cast<char*>(value);
}

bool is_contiguous(PyObject* tensor) { return ask(tensor, asked().is_contiguous).ptr() == Py_True; }

// Whether its memory holds its numbers with the other sign, as that of an imaginary part of a conjugate does.
bool is_negative(PyObject* tensor) { return ask(tensor, asked().is_neg).ptr() == Py_True; }

}  // namespace
}  // namespace elman
