// A program that can run: a loop over time, or the operations of a stage (loop.hpp), as Python sees it.
//
// Part of bind.cpp, whose words for tensors and workspaces it uses.
#pragma once

namespace elman {
namespace {

// Whether a signal that has come (Ctrl-C) raises an error, which is then set. Asked without Python's lock.
bool signalled() {
    nb::gil_scoped_acquire lock;
    return PyErr_CheckSignals() != 0;
}

class Interpreter {
public:
    // ops: for each operation code, wait, split, together, four sizes, k, and for each of six operands buffer, offset, four strides.
    Interpreter(const Kernels& kernels, bool wide, const std::vector<std::vector<int64_t>>& prepare, const std::vector<double>& prepare_numbers,
         const std::vector<std::vector<int64_t>>& ops, const std::vector<double>& numbers, const std::vector<std::vector<int64_t>>& buffers,
         const std::vector<std::vector<int64_t>>& states, int64_t scratch_bytes, int64_t prepared_bytes, int64_t work, int64_t widest,
         int64_t constants, int64_t sequences, int64_t emits, const std::vector<int64_t>& widths)
        : kernels_(kernels), wide_(wide), constants_(constants), sequences_(sequences), emits_(emits), widths_(widths) {
        if (int64_t(widths.size()) != constants + sequences + int64_t(states.size())) throw std::invalid_argument("a wrong number of widths");
        for (size_t i = 0; i < prepare.size(); i++) prepare_.push_back(operation(prepare[i], prepare_numbers[i]));
        for (size_t i = 0; i < ops.size(); i++) ops_.push_back(operation(ops[i], numbers[i]));
        for (const auto& b : buffers) buffers_.push_back({Kind(b.at(0)), b.at(1), b.at(2), b.at(3), b.at(4)});
        for (const auto& s : states) states_.push_back({s.at(0), s.at(1), s.at(2)});
        for (size_t i = 0; i < prepare_.size(); i++) find_reader(i);
        if (buffers_.size() > MOST_BUFFERS || states_.size() > MOST_STATES) throw std::invalid_argument("too many buffers or states");
        program_ = {prepare_.data(), int64_t(prepare_.size()), ops_.data(), int64_t(ops_.size()), buffers_.data(), int64_t(buffers_.size()),
                    states_.data(), int64_t(states_.size()), scratch_bytes, prepared_bytes, work, widest};
    }

    // values: constants, sequences and starts. out: memory for the emits, in order; finals: for the final states. strides:
    // elements between rows of every value, or None where all of them lie in order. sizes: None or the rows of every step.
    // Gives None; False if values do not lie in order, or with the other sign, and strides are None; a tuple of what failed.
    nb::object run(int64_t steps, int64_t batch, nb::handle sizes, bool reverse, const nb::tuple& values, nb::handle strides, const nb::tuple& out,
                const nb::list& finals, int threads) {
        const int64_t states = int64_t(states_.size()), given = constants_ + sequences_ + states;
        if (int64_t(nb::len(values)) != given || int64_t(nb::len(out)) != emits_ || int64_t(nb::len(finals)) != states ||
            (!strides.is_none() && int64_t(nb::len(strides)) != given))
            throw std::invalid_argument("a wrong number of tensors");
        std::vector<Pointer> found(size_t(given + emits_ + states));
        Pointer* at = found.data();
        for (int64_t i = 0; i < given; i++) {
            PyObject* value = PyTuple_GET_ITEM(values.ptr(), i);
            char* const data = address(value);
            if (strides.is_none() && (!is_contiguous(value) || is_negative(value) || is_unwritten(value, data))) return nb::bool_(false);
            *at++ = {data, strides.is_none() ? widths_[size_t(i)] : nb::cast<int64_t>(strides[i])};
        }
        for (int64_t i = 0; i < emits_; i++) *at++ = {address(PyTuple_GET_ITEM(out.ptr(), i)), 0};
        for (int64_t i = 0; i < states; i++) *at++ = {address(PyList_GET_ITEM(finals.ptr(), i)), 0};
        Call call = {};
        call.stop = signalled;
        call.steps = steps, call.batch = batch, call.reverse = reverse, call.threads = threads, call.poison = poisoned;
        bind(call, found.data());
        std::vector<int64_t> rows, offsets;
        if (!sizes.is_none()) {
            rows = nb::cast<std::vector<int64_t>>(sizes);
            if (int64_t(rows.size()) != steps) throw std::invalid_argument("a wrong number of batch sizes");
            offsets.reserve(rows.size());
            int64_t offset = 0;
            for (const int64_t size : rows) offsets.push_back(offset), offset += size;
            call.sizes = rows.data(), call.offsets = offsets.data();
        }
        Failure failure;
        const Kernels& now = of_now(kernels_);
        {
            nb::gil_scoped_release release;
            Workspaces::Block block = workspaces().take(now.workspace(program_, call));
            failure = (wide_ ? now.run64 : now.run32)(program_, call, block.data.get());
            workspaces().give_back(std::move(block));
        }
        if (failure.stopped) throw nb::python_error();
        if (failure.happened) return nb::make_tuple(failure.index, failure.size, failure.behind);
        return nb::none();
    }

    Stream stream(const std::string& weights, const nb::list& inputs, const nb::list& outputs, const nb::object& threads,
                  const nb::object& failed, const nb::object& empty_strided) const {
        return Stream(kernels_, wide_, program_, weights, constants_, inputs, outputs, threads, failed, empty_strided, poisoned);
    }

    const Program& program() const { return program_; }
    bool wide() const { return wide_; }

    // How many tensors a call has: constants, sequences, starts, emits and finals, in this order.
    int64_t tensors() const { return constants_ + sequences_ + emits_ + 2 * int64_t(states_.size()); }

    void bind(Call& call, const Pointer* tensors) const {
        call.constants = tensors;
        call.sequences = call.constants + constants_;
        call.starts = call.sequences + sequences_;
        call.emits = call.starts + states_.size();
        call.finals = call.emits + emits_;
    }

private:
    // Whether one operation of a step alone reads what this one packs.
    void find_reader(size_t i) {
        if (prepare_[i].code != code_product) return;
        Op* reader = nullptr;
        int64_t readers = 0;
        for (Op& op : ops_)
            for (const Operand& operand : op.operand)
                if (operand.buffer == prepare_[i].operand[0].buffer) reader = &op, readers++;
        if (readers == 1 && reader->code == code_product) reader->packing = prepare_[i].packing = int64_t(i);
    }

    static Op operation(const std::vector<int64_t>& flat, double number) {
        if (flat.size() != size_t(9 + OPERANDS * (2 + DIMENSIONS))) throw std::invalid_argument("an operation of a wrong length");
        Op op = {};
        op.packing = -1;
        op.code = Code(flat[0]), op.wait = flat[1], op.split = flat[2], op.together = flat[3], op.k = flat[8], op.number = number;
        for (int d = 0; d < DIMENSIONS; d++) op.size[d] = flat[size_t(4 + d)];
        size_t at = 9;
        for (auto& operand : op.operand) {
            operand.buffer = flat[at], operand.offset = flat[at + 1];
            for (int d = 0; d < DIMENSIONS; d++) operand.stride[d] = flat[at + 2 + size_t(d)];
            at += 2 + DIMENSIONS;
        }
        return op;
    }

    const Kernels& kernels_;
    bool wide_;
    int64_t constants_, sequences_, emits_;
    std::vector<int64_t> widths_;  // elements in a row of every constant, sequence and start; 0 for what has no rows
    std::vector<Op> prepare_, ops_;
    std::vector<Buffer> buffers_;
    std::vector<State> states_;
    Program program_;
};

}  // namespace
}  // namespace elman
