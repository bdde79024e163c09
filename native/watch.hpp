// Whether Python objects are as they were: what a layer compares before it takes the short way of a call.
#pragma once

#include "tensors.hpp"

#include <utility>
#include <vector>

namespace elman {

namespace nb = nanobind;

// Remembers, by identity, the classes of objects and what dicts, classes, lists, closures and other containers hold; and what
// tensors are like.
class Watch {
public:
    // empty: containers that have to stay without entries. dicts, classes: (holder, keys whose values do not count).
    // names: (dict, key, value), or (dict, key) where the dict lacks the key. cells: of closures. functions: their code
    // and defaults. others: iterables. tensors: their sizes, dtype and device. flowing: tensors that count by whether they
    // want a gradient. asked: (function, what it says).
    Watch(const nb::list& objects, const nb::list& empty, const nb::list& dicts, const nb::list& classes, const nb::list& lists, const nb::list& names,
          const nb::list& cells, const nb::list& functions, const nb::list& others, const nb::list& tensors, const nb::list& flowing, const nb::list& asked) {
        for (const nb::handle object : objects) {
            objects_.push_back(object.ptr()), keep(object.ptr());
            types_.push_back(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()))), keep(types_.back());
        }
        for (const nb::handle one : empty) empty_.push_back(one.ptr()), keep(one.ptr());
        for (const nb::handle pair : dicts) add(nb::borrow(pair[0]).ptr(), nb::borrow(pair[1]).ptr());
        for (const nb::handle pair : classes) {
            const nb::object kind = nb::borrow(pair[0]);
            keep(kind.ptr());
            add(entries_of(kind.ptr()), nb::borrow(pair[1]).ptr());
        }
        for (const nb::handle list : lists) lists_.push_back(held(list.ptr())), keep(list.ptr());
        for (const nb::handle name : names) {
            const nb::object dict = nb::borrow(name[0]), key = nb::borrow(name[1]);
            PyObject* value = nb::len(name) == 3 ? nb::borrow(name[2]).ptr() : nullptr;
            keep(dict.ptr()), keep(key.ptr());
            if (value) keep(value);
            names_.push_back({dict.ptr(), key.ptr(), value});
        }
        for (const nb::handle cell : cells) {
            PyObject* value = PyCell_GET(cell.ptr());
            keep(cell.ptr());
            if (value) keep(value);
            cells_.push_back({cell.ptr(), value});
        }
        for (const nb::handle function : functions) {
            const Function found = {function.ptr(), PyFunction_GET_CODE(function.ptr()), PyFunction_GET_DEFAULTS(function.ptr()),
                                    PyFunction_GET_KW_DEFAULTS(function.ptr())};
            for (PyObject* part : {found.function, found.code, found.defaults, found.keyword_defaults})
                if (part) keep(part);
            functions_.push_back(found);
        }
        for (const nb::handle other : others) others_.push_back(held(other.ptr())), keep(other.ptr());
        for (const nb::handle tensor : tensors) {
            forms_.push_back({tensor.ptr(), Form()}), keep(tensor.ptr());
            if (!forms_.back().second.of(tensor.ptr())) throw std::invalid_argument("a tensor that cannot be described");
        }
        for (const nb::handle tensor : flowing) flowing_.push_back({tensor.ptr(), wants_gradient(tensor.ptr())}), keep(tensor.ptr());
        for (const nb::handle pair : asked) {
            asked_.push_back({nb::borrow(pair[0]).ptr(), nb::borrow(pair[1]).ptr()});
            keep(asked_.back().first), keep(asked_.back().second);
        }
    }

    bool unchanged() const {
        if (!same()) return false;
        for (const auto& [tensor, form] : forms_)
            if (!form.is_of(tensor)) return false;
        return true;
    }

    // The same but for what tensors are like.
    bool same() const {
        for (size_t i = 0; i < objects_.size(); i++)
            if (reinterpret_cast<PyObject*>(Py_TYPE(objects_[i])) != types_[i]) return false;
        for (PyObject* one : empty_)
            if (PyDict_Check(one) ? PyDict_GET_SIZE(one) != 0 : PyObject_Length(one) != 0) return false;
        for (const auto& [dict, entries, edition] : dicts_) {
            const uint64_t now = edition_of(dict);
            if (now && now == edition) continue;
            if (size_t(PyDict_GET_SIZE(dict)) * 2 != entries.size()) return false;
            PyObject *key, *value;
            size_t i = 0;
            for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value); i += 2)
                if (key != entries[i] || (entries[i + 1] && value != entries[i + 1])) return false;
            edition = now;
        }
        for (const auto& [list, entries] : lists_) {
            if (size_t(PyList_GET_SIZE(list)) != entries.size()) return false;
            for (size_t i = 0; i < entries.size(); i++)
                if (PyList_GET_ITEM(list, Py_ssize_t(i)) != entries[i]) return false;
        }
        for (const auto& [dict, key, value] : names_)
            if (PyDict_GetItem(dict, key) != value) return false;
        for (const auto& [cell, value] : cells_)
            if (PyCell_GET(cell) != value) return false;
        for (const auto& [function, code, defaults, keyword_defaults] : functions_)
            if (PyFunction_GET_CODE(function) != code || PyFunction_GET_DEFAULTS(function) != defaults ||
                PyFunction_GET_KW_DEFAULTS(function) != keyword_defaults)
                return false;
        for (const auto& [other, entries] : others_) {
            size_t i = 0;
            for (const nb::handle item : nb::handle(other))
                if (i >= entries.size() || entries[i++] != item.ptr()) return false;
            if (i != entries.size()) return false;
        }
        for (const auto& [tensor, wants] : flowing_)
            if (wants_gradient(tensor) != wants) return false;
        for (const auto& [function, answer] : asked_)
            if (!still_says(function, answer)) return false;
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

    struct Dict {
        PyObject* dict;
        std::vector<PyObject*> entries;
        mutable uint64_t edition = 0;  // in which it last held these
    };

    struct Named {
        PyObject *dict, *key, *value;
    };

    struct Function {
        PyObject *function, *code, *defaults, *keyword_defaults;
    };

    Watch() = default;
    void keep(PyObject* object) { kept_.append(nb::handle(object)); }

    // A dict's entries; null for a value that does not count.
    void add(PyObject* dict, PyObject* passed) {
        dicts_.push_back({dict, {}}), keep(dict);
        PyObject *key, *value;
        for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value);) {
            dicts_.back().entries.push_back(key), keep(key);
            const bool counts = !nb::borrow<nb::frozenset>(passed).contains(nb::handle(key));
            dicts_.back().entries.push_back(counts ? value : nullptr);
            if (counts) keep(value);
        }
    }

    Entries held(PyObject* iterable) {
        Entries found = {iterable, {}};
        for (const nb::handle item : nb::handle(iterable)) found.entries.push_back(item.ptr()), keep(item.ptr());
        return found;
    }

    nb::list kept_;  // everything below
    std::vector<PyObject*> objects_, types_, empty_;
    std::vector<Dict> dicts_;
    std::vector<Entries> lists_, others_;
    std::vector<Named> names_;
    std::vector<Function> functions_;
    std::vector<std::pair<PyObject*, PyObject*>> cells_, asked_;
    std::vector<std::pair<PyObject*, Form>> forms_;
    std::vector<std::pair<PyObject*, bool>> flowing_;
};

}  // namespace elman
