// What is asked of tensors, by their own methods: nothing here is linked to PyTorch.
#pragma once

#include "python.hpp"

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace elman {

namespace nb = nanobind;

namespace {

// What is asked of a torch.Tensor: it calls the methods that Python code would call.
struct Asked {
    PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
    PyObject* numel = PyUnicode_InternFromString("numel");
    PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
    PyObject* size = PyUnicode_InternFromString("size");
    PyObject* stride = PyUnicode_InternFromString("stride");
    PyObject* is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* resolve_neg = PyUnicode_InternFromString("resolve_neg");
    PyObject* is_zero = PyUnicode_InternFromString("_is_zerotensor");
    PyObject* clone = PyUnicode_InternFromString("clone");
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

// An attribute of tensors that a function of C gets: where it is torch.Tensor's own, that is called at once, as looking for it by its
// name takes longer than getting it.
class Attribute {
public:
    // Made by whoever asks first: behind a guard of C++'s, a thread would wait for another one with Python's lock in its hand.
    static const Attribute& once(const Attribute*& made, const char* name) {
        if (!made) made = new Attribute(name);
        return *made;
    }

    explicit Attribute(const char* name) : name_(PyUnicode_InternFromString(name)) {
#if !defined(Py_LIMITED_API)
        const nb::module_ torch = nb::module_::import_("torch");
        tensor_ = nb::object(torch.attr("Tensor")).release().ptr(), parameter_ = nb::object(torch.attr("nn").attr("Parameter")).release().ptr();
        PyObject* found = nb::object(nb::handle(tensor_).attr(name)).release().ptr();
        if (Py_IS_TYPE(found, &PyGetSetDescr_Type)) get_ = reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset;
#endif
    }

    // Null, and Python's error, where it cannot be had.
    PyObject* of(PyObject* tensor) const {
#if !defined(Py_LIMITED_API)
        PyObject* kind = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
        if (get_ && (kind == tensor_ || kind == parameter_)) return get_->get(tensor, get_->closure);
#endif
        return PyObject_GetAttr(tensor, name_);
    }

private:
    PyObject* name_;
#if !defined(Py_LIMITED_API)
    PyObject *tensor_ = nullptr, *parameter_ = nullptr;
    PyGetSetDef* get_ = nullptr;
#endif
};

// A tensor as DLPack describes it: its DLTensor.
struct Described {
    char* data;
    int32_t device, device_index;
    int32_t dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t *sizes, *strides;  // in elements; they live as long as the tensor
    uint64_t offset;

    int64_t bytes() const {
        int64_t count = lanes * bits / 8;
        for (int32_t d = 0; d < dimensions; d++) count *= sizes[d];
        return count;
    }

    bool is_empty() const {
        for (int32_t d = 0; d < dimensions; d++)
            if (sizes[d] == 0) return true;
        return false;
    }

    // Whether it lies in order, where sizes of one do not count.
    bool in_order() const {
        int64_t step = 1;
        bool found = true;
        for (int32_t d = dimensions - 1; d >= 0; d--) {
            if (sizes[d] == 0) return true;
            if (sizes[d] != 1 && strides[d] != step) found = false;
            step *= sizes[d];
        }
        return found;
    }
};

// PyTorch's table of functions for who reads its tensors in C (DLPack 1.2 and later, `__dlpack_c_exchange_api__`): one call
// in place of five methods. Null where there is none.
using Describe = int (*)(void*, Described*);

Describe describer() {
    struct Table {
        uint32_t major, minor;
        const void* older;
        void* others[3];
        Describe describe;
    };
    try {
        const nb::object capsule = nb::module_::import_("torch").attr("Tensor").attr("__dlpack_c_exchange_api__");
        const auto* table = static_cast<const Table*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (table && table->major == 1) return table->describe;
    } catch (nb::python_error&) {
    }
    return PyErr_Clear(), nullptr;
}

// False where that cannot be had; then nothing is known.
bool describe(PyObject* tensor, Described& found) {
    static Describe function = nullptr;
    static bool sought = false;
    if (!sought) function = describer(), sought = true;
    if (!function) return false;
    if (function(tensor, &found) != 0) return PyErr_Clear(), false;
    if (!found.data && !found.is_empty()) return false;
    found.data += found.offset;
    return true;
}

// Where its numbers begin. Throws for a tensor whose memory was given back.
char* address(PyObject* tensor) {
    Described known;
    if (describe(tensor, known)) return known.data;
    const nb::object found = ask(tensor, asked().data_ptr);
    const int64_t value = PyLong_AsLongLong(found.ptr());
    if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    if (!value && PyObject_IsTrue(ask(tensor, asked().numel).ptr()) && ask(tensor, asked().is_zero).ptr() != Py_True)
        throw std::runtime_error("a tensor has no memory: its storage was given back (untyped_storage().resize_(0), as FSDP does between calls)");
    return reinterpret_cast<char*>(value);
}

// The function of C by which PyTorch's own compiled code asks a tensor where its numbers begin, a tenth of `describe`'s time; null
// where there is none.
using Locate = void* (*)(PyObject*);

Locate locator() {
    try {
        const nb::object found = nb::module_::import_("torch._C._dynamo.guards").attr("_torchinductor_pyobject_tensor_data_ptr");
        if (PyLong_Check(found.ptr())) return reinterpret_cast<Locate>(PyLong_AsVoidPtr(found.ptr()));
    } catch (nb::python_error&) {
    }
    return PyErr_Clear(), nullptr;
}

// What a tensor is like: sizes, dtype and device.
class Form {
public:
    // Whether it can be told.
    bool of(PyObject* tensor) {
        Described now;
        if (!describe(tensor, now)) return false;
        sizes_.assign(now.sizes, now.sizes + now.dimensions);
        first_ = now;
        return true;
    }

    // free: leading dimensions of which the sizes may be others.
    bool is(const Described& now, int32_t free = 0) const {
        if (now.dimensions != first_.dimensions || now.code != first_.code || now.bits != first_.bits || now.lanes != first_.lanes ||
            now.device != first_.device || now.device_index != first_.device_index)
            return false;
        for (int32_t d = free; d < now.dimensions; d++)
            if (now.sizes[d] != sizes_[size_t(d)]) return false;
        return true;
    }

    bool is_of(PyObject* tensor, int32_t free = 0) const {
        Described now;
        return describe(tensor, now) && is(now, free);
    }

private:
    std::vector<int64_t> sizes_;
    Described first_;
};

bool is_contiguous(PyObject* tensor) { return ask(tensor, asked().is_contiguous).ptr() == Py_True; }

bool wants_gradient(PyObject* tensor) {
    static const Attribute* made = nullptr;
    const nb::object found = nb::steal(Attribute::once(made, "requires_grad").of(tensor));
    if (!found.is_valid()) throw nb::python_error();
    return found.ptr() == Py_True;
}

// Whether its memory holds its numbers with the other sign, as that of an imaginary part of a conjugate does.
bool is_negative(PyObject* tensor) { return ask(tensor, asked().is_neg).ptr() == Py_True; }

// Whether it is zeros that autograd has not written down (torch._efficientzerotensor): its address is a place in nothing. It is
// asked only where the address is lower than those that an allocator gives; an answer costs as much as the address.
bool is_unwritten(PyObject* tensor, const char* address) {
    return (uint64_t(reinterpret_cast<uintptr_t>(address)) >> 40) == 0 && ask(tensor, asked().is_zero).ptr() == Py_True;
}

// The arguments of `empty_strided` for a tensor in order.
nb::object new_in_order(const int64_t* sizes, size_t dimensions, PyObject* dtype) {
    const nb::object shape = nb::steal(PyTuple_New(Py_ssize_t(dimensions))), strides = nb::steal(PyTuple_New(Py_ssize_t(dimensions)));
    int64_t stride = 1;
    for (size_t d = dimensions; d-- > 0; stride *= sizes[d] > 1 ? sizes[d] : 1) {
        PyTuple_SET_ITEM(shape.ptr(), Py_ssize_t(d), PyLong_FromLongLong(sizes[d]));
        PyTuple_SET_ITEM(strides.ptr(), Py_ssize_t(d), PyLong_FromLongLong(stride));
    }
    return nb::steal(PyTuple_Pack(3, shape.ptr(), strides.ptr(), dtype));
}

// What a function gives for these arguments.
nb::object made_by(PyObject* function, const nb::object& arguments) {
    nb::object found = nb::steal(PyObject_Call(function, arguments.ptr(), nullptr));
    if (!found.is_valid()) throw nb::python_error();
    return found;
}

// The same numbers as they stand in memory.
nb::object plain_tensor(PyObject* tensor) {
    const nb::object plain = is_negative(tensor) ? ask(tensor, asked().resolve_neg) : nb::borrow(tensor);
    return is_unwritten(plain.ptr(), address(plain.ptr())) ? ask(plain.ptr(), asked().clone) : plain;
}

}  // namespace
}  // namespace elman
