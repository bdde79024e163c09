// Python's C API. A wheel for every Python from 3.12 on may use the limited one only (CMakeLists.txt): what of the full one
// that lacks stands here, by the names that it has there. Written against the full one, everything else compiles with both.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>

#if defined(Py_LIMITED_API)

inline PyObject* PyTuple_GET_ITEM(PyObject* tuple, Py_ssize_t i) { return PyTuple_GetItem(tuple, i); }
inline Py_ssize_t PyTuple_GET_SIZE(PyObject* tuple) { return PyTuple_Size(tuple); }
inline void PyTuple_SET_ITEM(PyObject* tuple, Py_ssize_t i, PyObject* value) { PyTuple_SetItem(tuple, i, value); }
inline PyObject* PyList_GET_ITEM(PyObject* list, Py_ssize_t i) { return PyList_GetItem(list, i); }
inline Py_ssize_t PyList_GET_SIZE(PyObject* list) { return PyList_Size(list); }
inline Py_ssize_t PyDict_GET_SIZE(PyObject* dict) { return PyDict_Size(dict); }

inline PyObject* PyObject_CallOneArg(PyObject* function, PyObject* argument) {
    PyObject* arguments[] = {nullptr, argument};
    return PyObject_Vectorcall(function, arguments + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
}

inline PyObject* PyObject_CallMethodNoArgs(PyObject* object, PyObject* name) {
    return PyObject_VectorcallMethod(name, &object, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
}

inline PyObject* PyObject_CallMethodOneArg(PyObject* object, PyObject* name, PyObject* argument) {
    PyObject* arguments[] = {nullptr, object, argument};
    return PyObject_VectorcallMethod(name, arguments + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
}

namespace elman {

// An attribute that `of` goes on holding; null where there is none.
inline PyObject* held_attribute(PyObject* of, PyObject* name) {
    PyObject* found = PyObject_GetAttr(of, name);
    if (!found) return PyErr_Clear(), nullptr;
    Py_DECREF(found);
    return found;
}

}  // namespace elman

#define ELMAN_ATTRIBUTE(function, attribute)                                           \
    inline PyObject* function(PyObject* of) {                                          \
        static PyObject* const name = PyUnicode_InternFromString(attribute);           \
        return elman::held_attribute(of, name);                                        \
    }
ELMAN_ATTRIBUTE(PyCell_GET, "cell_contents")
ELMAN_ATTRIBUTE(PyFunction_GET_CODE, "__code__")
ELMAN_ATTRIBUTE(PyFunction_GET_DEFAULTS, "__defaults__")
ELMAN_ATTRIBUTE(PyFunction_GET_KW_DEFAULTS, "__kwdefaults__")
#undef ELMAN_ATTRIBUTE

#endif

namespace elman {

// Multiplications and the like that take less time than getting Python's lock again may.
constexpr int64_t ALONE = 1 << 18;

// The dict of a class, which the class goes on holding.
inline PyObject* entries_of(PyObject* kind) {
#if defined(Py_LIMITED_API)
    // A mappingproxy refers to the dict that it shows, and to nothing else.
    const nanobind::object shown = nanobind::borrow(kind).attr("__dict__"), referred = nanobind::module_::import_("gc").attr("get_referents")(shown);
    PyObject* found = nanobind::len(referred) == 1 ? nanobind::object(referred[0]).ptr() : nullptr;
    if (!found || !PyDict_Check(found)) throw std::invalid_argument("a class that does not show its entries");
    return found;
#else
    return reinterpret_cast<PyTypeObject*>(kind)->tp_dict;
#endif
}

// What a function says that takes nothing.
inline nanobind::object answer_of(PyObject* function) {
    PyObject* found = PyObject_CallNoArgs(function);
    if (!found) throw nanobind::python_error();
    return nanobind::steal(found);
}

// Whether it says that, or something equal.
inline bool still_says(PyObject* function, PyObject* answer) {
    const nanobind::object now = answer_of(function);
    const int equal = now.ptr() == answer ? 1 : PyObject_RichCompareBool(now.ptr(), answer, Py_EQ);
    if (equal < 0) throw nanobind::python_error();
    return equal == 1;
}

// A number that no other dict has and that changes whenever this one does, where CPython keeps one (PEP 509; deprecated from 3.12
// on); else zero.
inline uint64_t edition_of([[maybe_unused]] PyObject* dict) {
#if !defined(Py_LIMITED_API) && PY_VERSION_HEX < 0x030C0000
    return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#else
    return 0;
#endif
}

}  // namespace elman
