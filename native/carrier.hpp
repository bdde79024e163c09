// A step of what learning forward in time carries along, as Python calls it: native/carry.hpp. Seen by bind.cpp alone.
#pragma once

namespace elman {
namespace {

// at, of: where D is other than zero, int64; they are kept. sizes: rows, blocks, units, columns, and elements of a row of D.
class Carrier {
public:
    Carrier(const Kernels& kernels, bool wide, const nb::object& at, const nb::object& of, const std::vector<int64_t>& sizes)
        : kernels_(kernels), wide_(wide), at_(at), of_(of) {
        if (sizes.size() != 5) throw std::invalid_argument("five sizes");
        all_ = {sizes[0], sizes[1], sizes[2], sizes[3], nullptr, nullptr, nullptr, sizes[4], places(at), places(of), int64_t(nb::len(at))};
    }

    // influence = jacobian influence + added; all of them lie in order.
    void operator()(const nb::object& influence, const nb::object& jacobian, const nb::object& added, int threads) const {
        Carried all = all_;
        all.influence = address(influence.ptr()), all.jacobian = address(jacobian.ptr()), all.added = address(added.ptr());
        nb::gil_scoped_release release;
        Workspaces::Block block = workspaces().take((wide_ ? kernels_.carry_bytes64 : kernels_.carry_bytes32)(all.units, threads));
        (wide_ ? kernels_.carry64 : kernels_.carry32)(all, threads, block.data.get());
        workspaces().give_back(std::move(block));
    }

private:
    static const int64_t* places(const nb::object& tensor) { return tensor.is_none() ? nullptr : reinterpret_cast<const int64_t*>(address(tensor.ptr())); }

    const Kernels& kernels_;
    bool wide_;
    nb::object at_, of_;
    Carried all_;
};

const Kernels& named(const std::string& name);

void bind_carrier(nb::module_& m) {
    nb::class_<Carrier>(m, "Carrier")
        .def("__init__", [](Carrier* self, const std::string& isa, bool wide, const nb::object& at, const nb::object& of, const std::vector<int64_t>& sizes) {
            new (self) Carrier(named(isa), wide, at, of, sizes);
        }, nb::arg("isa"), nb::arg("wide"), nb::arg("at"), nb::arg("of").none(), nb::arg("sizes"))
        .def("__call__", &Carrier::operator());
}

}  // namespace
}  // namespace elman
