// Whether Python objects are as they were: what a layer compares before it takes the short way of a call.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

namespace elman {

namespace nb = nanobind;

// Remembers, by identity, the classes of objects and the entries of dicts and lists.
class Watch {
public:
    // empty: containers that have to stay without entries.
    Watch(const nb::list& objects, const nb::list& empty, const nb::list& dicts, const nb::list& lists) {
        for (const nb::handle object : objects) {
            objects_.push_back(object.ptr()), keep(object.ptr());
            types_.push_back(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()))), keep(types_.back());
        }
        for (const nb::handle one : empty) empty_.push_back(one.ptr()), keep(one.ptr());
        for (const nb::handle dict : dicts) {
            dicts_.push_back({dict.ptr(), {}}), keep(dict.ptr());
            PyObject *key, *value;
            for (Py_ssize_t at = 0; PyDict_Next(dict.ptr(), &at, &key, &value);) {
                dicts_.back().entries.push_back(key), keep(key);
                dicts_.back().entries.push_back(value), keep(value);
            }
        }
        for (const nb::handle list : lists) {
            lists_.push_back({list.ptr(), {}}), keep(list.ptr());
            for (const nb::handle item : nb::borrow<nb::list>(list)) lists_.back().entries.push_back(item.ptr()), keep(item.ptr());
        }
    }

    bool unchanged() const {
        for (size_t i = 0; i < objects_.size(); i++)
            if (reinterpret_cast<PyObject*>(Py_TYPE(objects_[i])) != types_[i]) return false;
        for (PyObject* one : empty_)
            if (PyObject_Length(one) != 0) return false;
        for (const auto& [dict, entries] : dicts_) {
            if (size_t(PyDict_GET_SIZE(dict)) * 2 != entries.size()) return false;
            PyObject *key, *value;
            size_t i = 0;
            for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value); i += 2)
                if (key != entries[i] || value != entries[i + 1]) return false;
        }
        for (const auto& [list, entries] : lists_) {
            if (size_t(PyList_GET_SIZE(list)) != entries.size()) return false;
            for (size_t i = 0; i < entries.size(); i++)
                if (PyList_GET_ITEM(list, Py_ssize_t(i)) != entries[i]) return false;
        }
        return true;
    }

    // For the garbage collector.
    static int traverse(PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        if (nb::inst_ready(self)) Py_VISIT(nb::inst_ptr<Watch>(self)->kept_.ptr());
        return 0;
    }

    static int clear(PyObject* self) {
        if (nb::inst_ready(self)) *nb::inst_ptr<Watch>(self) = Watch();
        return 0;
    }

private:
    struct Entries {
        PyObject* holder;
        std::vector<PyObject*> entries;
    };

    Watch() = default;
    void keep(PyObject* object) { kept_.append(nb::handle(object)); }

    nb::list kept_;  // everything below
    std::vector<PyObject*> objects_, types_, empty_;
    std::vector<Entries> dicts_, lists_;
};

}  // namespace elman
