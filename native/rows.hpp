// Rows in another order, some of them zeros: of tensors, the fast way of elman/segments/move.py for what is not so large that several
// threads would share it; and of whatever a pass has (pass.hpp).
#pragma once

#include <nanobind/ndarray.h>

#include <cstring>

#include "team.hpp"
#include "tensors.hpp"

namespace elman {

namespace nb = nanobind;

// What lies behind the first dimensions of a tensor, as so many elements one step apart. False where it is no such thing.
inline bool in_one_line(const Described& tensor, int32_t lead, int64_t& width, int64_t& step) {
    width = 1, step = 1;
    for (int32_t d = tensor.dimensions - 1; d >= lead; d--) {
        if (tensor.sizes[d] == 1) continue;
        if (width == 1)
            step = tensor.strides[d];
        else if (tensor.strides[d] != width * step)
            return false;
        width *= tensor.sizes[d];
    }
    return true;
}

template <class T>
void spread_out(const char* from, int64_t step, int64_t width, char* to) {
    const T* source = reinterpret_cast<const T*>(from);
    T* target = reinterpret_cast<T*>(to);
    for (int64_t i = 0; i < width; i++) target[i] = source[i * step];
}

// to[i] = from[index[i]], `count` rows of `width` bytes, and zeros where `from`, of `rows` rows, has no such one. Row r of `from` lies
// (r / inner) outer_step + (r % inner) inner_step bytes behind its beginning.
struct Moving {
    const char* from;
    int64_t rows, inner, outer_step, inner_step;
    const int64_t* index;
    int64_t count, width;
    char* to;

    void run(int64_t first, int64_t last) const {
        const bool evenly = inner == 1 || inner * inner_step == outer_step;  // a division takes as long as a row
        const int64_t step = inner == 1 ? outer_step : inner_step;
        for (int64_t i = first; i < last; i++) {
            char* at = to + i * width;
            if (index[i] >= rows)
                std::memset(at, 0, size_t(width));
            else
                std::memcpy(at, from + (evenly ? index[i] * step : index[i] / inner * outer_step + index[i] % inner * inner_step), size_t(width));
        }
    }

    // By several threads where it is worth waking them.
    void run(int threads) {
        constexpr int64_t LARGE = 1 << 20;  // bytes
        auto share = [](void* moving, int thread, int all) {
            const Moving& m = *static_cast<const Moving*>(moving);
            m.run(m.count * thread / all, m.count * (thread + 1) / all);
        };
        run_team(count * width > LARGE ? threads : 1, share, this);
    }
};

// to[i] = from[index[i]], and zeros where `from` has no such row. lead: how many dimensions of `from`, one or two, stand for its
// rows. False, and nothing done, for what PyTorch does better or alone: large tensors, other devices, dtypes and classes.
inline bool move_rows(nb::handle from, const nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>& index, nb::handle to, int32_t lead) {
    constexpr int64_t LARGE = 1 << 20;  // bytes
    constexpr int32_t CPU = 1, COMPLEX = 5;
    static PyObject* tensor = nullptr;
    if (!tensor) tensor = nb::object(nb::module_::import_("torch").attr("Tensor")).release().ptr();
    Described source, target;
    int64_t width, step;
    for (const nb::handle one : {from, to})
        if (reinterpret_cast<PyObject*>(Py_TYPE(one.ptr())) != tensor) return false;
    if (!describe(from.ptr(), source) || !describe(to.ptr(), target) || source.device != CPU || target.device != CPU) return false;
    if (source.code == COMPLEX || source.code != target.code || source.bits != target.bits || source.dimensions < lead) return false;
    if (source.bits % 8 || source.lanes != 1) return false;  // several numbers in a byte
    if (!in_one_line(source, lead, width, step) || !target.in_order()) return false;
    const int64_t count = int64_t(index.size()), bytes = source.bits / 8, inner = lead == 2 ? source.sizes[1] : 1;
    if (count * width * bytes > LARGE || is_negative(from.ptr()) || is_unwritten(from.ptr(), source.data)) return false;
    const int64_t rows = source.sizes[0] * inner, outer_step = source.strides[0] * bytes, inner_step = lead == 2 ? source.strides[1] * bytes : 0;
    if (step == 1) {
        Moving{source.data, rows, inner, outer_step, inner_step, index.data(), count, width * bytes, target.data}.run(0, count);
        return true;
    }
    char* at = target.data;
    for (int64_t i = 0; i < count; i++, at += width * bytes) {
        const int64_t row = index.data()[i];
        if (row >= rows) {
            std::memset(at, 0, size_t(width * bytes));
            continue;
        }
        const char* here = source.data + row / inner * outer_step + row % inner * inner_step;
        if (bytes == 1)
            spread_out<uint8_t>(here, step, width, at);
        else if (bytes == 2)
            spread_out<uint16_t>(here, step, width, at);
        else if (bytes == 4)
            spread_out<uint32_t>(here, step, width, at);
        else
            spread_out<uint64_t>(here, step, width, at);
    }
    return true;
}

}  // namespace elman
