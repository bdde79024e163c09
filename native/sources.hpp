// Where the constants of a stream come from, and whether they are what they were.
//
// Part of stream.hpp.
#pragma once

#include <utility>
#include <vector>

#include "tensors.hpp"
#include "watch.hpp"

namespace elman {

namespace nb = nanobind;

class Sources {
public:
    // sources, unchanged: see Stream::load. kept: gets what has to live as long as they are asked for.
    void load(const nb::list& sources, const nb::object& unchanged, const nb::object& tensor_class, nb::list& kept) {
        clear();
        kept.append(sources), kept.append(unchanged);
        unchanged_ = unchanged.is_none() ? nullptr : unchanged.ptr();
        const nb::object owner = nb::getattr(unchanged, "__self__", nb::none()), method = nb::getattr(unchanged, "__func__", nb::none());
        watch_ = nb::isinstance<Watch>(owner) && method.is(nb::type<Watch>().attr("same")) ? nb::inst_ptr<Watch>(owner) : nullptr;
        for (const nb::handle item : sources) {
            const nb::object store = nb::borrow(item[0]), key = nb::borrow(item[1]), value = nb::len(item) < 3 ? nb::object() : nb::borrow(item[2]);
            kept.append(store), kept.append(key);
            if (value.is_valid()) kept.append(value);
            if (store.is_none() && !key.is_none()) {
                asked_.push_back({key.ptr(), value.ptr()});
                continue;
            }
            const bool has = value.is_valid() && nb::isinstance(value, tensor_class);
            if (has) kept.append(value.attr("detach")());  // or `.data =` could free this memory, and another one find other numbers there
            sources_.push_back({store.is_none() ? nullptr : store.ptr(), key.ptr(), value.ptr(), has ? version(value.ptr()) : 0, has ? address(value.ptr()) : nullptr});
        }
        locate_ = locator();
        for (const Source& s : sources_)
            if (locate_ && s.data && located(s.tensor) != s.data) locate_ = nullptr;
    }

    // Whether they are what they were, as far as that can be seen.
    bool same() const {
        for (const Source& s : sources_) {
            if (s.store && !s.stored()) return false;
            if (s.data && (version(s.tensor) != s.version || located(s.tensor) != s.data)) return false;
        }
        for (const auto& [function, answer] : asked_)
            if (!still_says(function, answer)) return false;
        if (watch_) return watch_->same();
        return !unchanged_ || answer_of(unchanged_).ptr() == Py_True;
    }

    void clear() { sources_.clear(), asked_.clear(), unchanged_ = nullptr, watch_ = nullptr; }

private:
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

    // How often a tensor was written to; -1 for one that does not count.
    static int64_t version(PyObject* tensor) {
        static const Attribute* made = nullptr;
        PyObject* found = Attribute::once(made, "_version").of(tensor);
        if (!found) return PyErr_Clear(), -1;
        return PyLong_AsLongLong(nb::steal(found).ptr());
    }

    char* located(PyObject* tensor) const { return locate_ ? static_cast<char*>(locate_(tensor)) : address(tensor); }

    std::vector<Source> sources_;
    std::vector<std::pair<PyObject*, PyObject*>> asked_;  // functions, and what they said
    PyObject* unchanged_ = nullptr;
    const Watch* watch_ = nullptr;  // whose `same` that is
    Locate locate_ = nullptr;
};

}  // namespace elman
