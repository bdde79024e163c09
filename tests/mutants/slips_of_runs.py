"""Slips in what runs a plan: engines, segments of time and of rows, memory, and calls."""

from __future__ import annotations

from tests.mutants.slip import Slip

SLIPS = (
    # --- bundles ---
    Slip(
        "engines/native/bundles.py", "home.put_within(room, room.behind)", "home.put_within(room, (0, 0, 0))",
        "values that are kept lie on top of one another", "engines/test_bundles.py",
    ),
    Slip(
        "engines/native/bundles.py", '"trail": (0, 1, 1)', '"trail": (0, 0, 1)',
        "what follows a trail in a bundle lies in its last step", "engines/test_bundles.py",
    ),
    Slip(
        "execute/training_plans.py", "place - kept + len(bundle.tensors)", "place",
        "a backward pass takes a bundle for a cotangent", "engines/test_bundles.py",
    ),
    Slip(
        "execute/training_plans.py", "small and call.packing is None and call.layout is None", "call.layout is None",
        "large calls, and ragged ones, hand on bundles", "engines/test_bundles.py recurrent/test_laid.py",
    ),
    # --- recordings ---
    Slip(
        "engines/cuda.py", "    torch._foreach_copy_(recording.inputs, [t for t in tensors if t is not None])\n", "",
        "a recording reads what it was recorded with", "engines/test_cuda.py -k numbers",
    ),
    Slip(
        "engines/cuda.py", "[value.clone() for value in recording.outputs]", "[*recording.outputs]",
        "the next call writes over what a call gave", "engines/test_cuda.py -k callers",
    ),
    Slip(
        "engines/cuda.py", "(t.shape, t.stride(), t.dtype)", "t.dtype",
        "a recording is taken for calls of other sizes", "engines/test_cuda.py -k sizes",
    ),
    Slip(
        "engines/cuda.py", "met.get(mine, 1)", "met.get(mine, 0)",
        "a thread records what it has not run", "engines/test_cuda.py -k thread",
    ),
    Slip(
        "engines/cuda.py", "and type(t) in _PLAIN", "and type(t) is Tensor",
        "nothing with weights is recorded", "engines/test_cuda.py -k callers",
    ),
    Slip(
        "engines/codegen.py", "{where}(m{i}, {value}, h{i})", "{where}(m{i}, h{i}, {value})",
        "rows that have ended change, the others do not", "engines/test_cuda.py -k different_lengths",
    ),
    Slip(
        "engines/masked.py", "way = slice(None, None, -1 if reverse else 1)", "way = slice(None)",
        "masked loops run forward in time", "engines/test_cuda.py -k different_lengths",
    ),
    Slip(
        "noise.py", "emit(aten.clamp.default, u, torch.finfo(out.dtype).eps / 4)", "u",
        "an exponential number is 0 now and then", "test_noise.py -k above_zero",
    ),
    Slip(
        "noise.py", "> _FEW:", "< 0:", "no odd number of more than 2^24 comes up", "test_noise.py -k whole_number",
    ),
    # --- memory ---
    Slip(
        "execute/segmented.py", "                into[self.states.index(i)][: s.rows] = 0\n", "                pass\n",
        "the gradient of a final state goes on through a state that no gradient flows back through",
        "recurrent/test_memory.py -k cut_rnn",
    ),
    Slip(
        "execute/segmented.py", "first=call.first + s.first", "first=call.first",
        "every segment draws the noise of the first one", "recurrent/test_memory.py -k noise",
    ),
    Slip(
        "execute/laid.py", "else swap.back(t)", "else swap(t)", "final states come back in the order of the pieces",
        "recurrent/test_laid.py",
    ),
    Slip(
        "segments/timeline.py", "self.device, (s.first, s.start))", "self.device)",
        "every segment of a ragged call draws the noise of the first one", "recurrent/test_memory.py -k noise",
    ),
    Slip(
        "execute/segmented.py", "            part.copy_(values[slot])", "            pass",
        "a segment does not begin with what the one before it ended with", "recurrent/test_memory.py -k budgets",
    ),
    Slip(
        "execute/segmented.py", "cuts.count - 1 - turn if self.reverse else turn", "turn",
        "a reversed call runs its segments from the first to the last", "recurrent/test_memory.py -k budgets",
    ),
    Slip(
        "execute/segmented.py", "part[:goes_on] = 0", "pass",
        "rows that go on get the gradient of their final state in every segment",
        "recurrent/test_memory.py -k teacher",
    ),
    Slip(
        "execute/segmented.py", "value = value - rest", "value = value", "what rounding loses of a sum is lost",
        "recurrent/test_memory.py -k sums",
    ),
    Slip(
        "execute/segmented.py", ".nan_to_num_(0.0, 0.0, 0.0)", "", "an infinite sum becomes none",
        "recurrent/test_memory.py -k infinity",
    ),
    Slip(
        "adjoint.py", "(port.name, port.next) not in have", "port.name not in {state for state, _ in have}",
        "a segment hands on the final state, not what the teacher says", "recurrent/test_memory.py -k teacher",
    ),
    Slip(
        "plan/memory.py", "min(max(end, 1), count - 1)", "1", "states are stored where they spare the fewest steps",
        "plan/test_memory.py -k needed",
    ),
    Slip(
        "plan/memory.py", "needs.residuals * rows + peak(needs.backward)", "peak(needs.backward)",
        "what the backward pass reads is not counted", "recurrent/test_memory.py -k counted",
    ),
    Slip(
        "plan/footprint.py", "port.kind in (Kind.NOISE, Kind.SEQUENCE)", "port.kind is Kind.NOISE",
        "sequences that are put in order are not counted", "recurrent/test_memory.py -k 'counted or held'",
    ),
    Slip(
        "segments/layout.py", "return self._move.rows[s.start : s.end]", "return self._move.rows[: s.end - s.start]",
        "every segment reads the rows of the first one", "recurrent/test_memory.py -k budgets",
    ),
    Slip(
        "recurrent/joined.py", "[*cell.cells] != cells", "len(cell.cells) != len(cells)",
        "a stack goes on with a cell that was replaced", "recurrent/test_memory_layers.py -k follows",
    ),
    Slip(
        "models/bounded.py", "h = h * context[\"last\"]", "pass",
        "a language model under a budget leaves out nothing before its readout",
        "recurrent/test_memory_layers.py -k dropout",
    ),
    # --- engines ---
    Slip(
        "engines/native/lower.py", '"fma" if plus else "fnma"', '"fma" if plus else "fms"',
        "a - b c comes out as b c - a", "engines/test_native.py -k cases",
    ),
    Slip(
        "engines/native/finishing.py", "                last[root(view)] = i\n",
        "                last.setdefault(root(view), i)\n", "scratch memory is given away while it is read",
        "engines/test_native.py -k cases",
    ),
    Slip(
        "engines/native/finishing.py", "_apart(out, left) and ", "",
        "products go together of which one reads what the other makes", "engines/test_packed.py",
    ),
    Slip(
        "engines/native/lower.py", "part.target is target and len(part.users) == 1", "part.target is target",
        "a product that others read is fused away", "engines/test_native.py -k cases",
    ),
    Slip(
        "engines/lookups.py", "yield index, source.shape[dim], True", "yield index, source.shape[dim] + 1, True",
        "an index just out of range is told with the wrong size", "engines/test_lookups.py",
    ),
    Slip(
        "engines/reference.py", "final[size:running] = state[size:running]",
        "final[size:running] = state[:running - size]", "rows that end leave others' states",
        "engines/test_python.py plan/test_laws.py recurrent/test_sequences.py",
    ),
    Slip(
        "engines/reference.py", "value[:rows] if name in loop.rowed else value", "value",
        "a constant per row keeps the rows that have ended", "plan/test_laws.py recurrent/test_sequences.py",
    ),
    # --- segments ---
    Slip(
        "segments/pieces.py", "return starts if reverse else starts & ~pieces.fresh", "return starts",
        "a piece after a reset starts from its row's state", "recurrent/test_sequences.py",
    ),
    Slip(
        "segments/layout.py", "even and pieces.alone and", "even and",
        "a reset at the first step of every row is forgotten",
        "recurrent/test_sequences.py recurrent/test_sequence_laws.py",
    ),
    Slip(
        "segments/layout.py", "index = pieces.first if reverse else pieces.last", "index = pieces.last",
        "a reversed row's final state is that of its last piece", "recurrent/test_sequences.py",
    ),
    Slip(
        "segments/timeline.py", "value.index_select(0, packing.after)", "value.index_select(0, packing.before)",
        "a reversed shift of rows of different lengths goes forward", "plan/test_laws.py recurrent/test_sequences.py",
    ),
    Slip(
        "segments/timeline.py",
        "        lengths = self.packing.lengths.to(value.dtype)\n        return value * "
        "lengths.reshape(-1, *[1] * (value.dim() - 1))", "        return value * self.packing.steps",
        "a gradient that is the same at every step counts the steps of the longest row",
        "recurrent/test_sequence_laws.py -k operations_on_time",
    ),
    Slip(
        "segments/move.py", "and plain and forward_ad._current_level < 0", "and plain",
        "directions of rows that are moved are lost", "recurrent/test_cut.py -k directions",
    ),
    Slip(
        "segments/padded.py", "final = np.where(chosen < 0, most + np.arange(batch), chosen)",
        "final = np.where(chosen < 0, most, chosen)", "compiled: rows without a step end in the first row's state",
        "recurrent/test_compiled_pieces.py",
    ),
    # --- execute ---
    Slip(
        "execute/training_plans.py", "arrive[name] if name in arrive else lies.get(name)", "lies.get(name)",
        "the cotangents of a ragged call are read where users have them", "recurrent/test_laid.py",
    ),
    Slip(
        "execute/executable.py", "[t.detach() if t._is_view() else t for t in put_back]", "put_back",
        "nobody may write into the outputs of a ragged call", "recurrent/test_laid.py",
    ),
    Slip(
        "execute/training_plans.py", "own.get(str(out.gradient_of)) for", "None for",
        "gradients of a ragged call come back as packed rows", "recurrent/test_laid.py",
    ),
    Slip(
        "execute/autograd.py", "        if training.silent:\n", "        if False:\n",
        "outputs that nothing flows through want gradients", "recurrent/test_requires_grad.py",
    ),
    Slip(
        "execute/examples.py", 'noise = drawn_inside and randomness == "different"', "noise = False",
        "every example of a vmap draws the same noise", "test_vmap.py -k noise",
    ),
    Slip(
        "execute/autograd.py", "o.clone() if o.untyped_storage()._cdata in memory else o", "o",
        "an output written into spoils what checkpointing has kept",
        "recurrent/test_written.py recurrent/test_doors.py test_nn_edges.py",
    ),
    Slip(
        "execute/program.py", "            reached |= fed ", "            break\n            reached |= fed ",
        "a state that brings a gradient at the next step is not seen to", "recurrent/test_requires_grad.py",
    ),
    Slip(
        "execute/program.py", 'tuple("copy" if shared else "own" for shared in sharing(self.circuit))',
        'tuple("own" for shared in sharing(self.circuit))', "an output lies in the memory of an input",
        "test_execute.py recurrent/test_written.py test_nn_edges.py",
    ),
    # --- recurrent ---
    Slip(
        "recurrent/order.py", 'for name in ("mask", "reset", "teacher", "teacher_weight"):',
        'for name in ("mask", "reset", "teacher"):', "a batch-first weight of the teacher is read time-major",
        "recurrent/test_order.py",
    ),
    Slip(
        "trace/record.py", "if func._schema.is_mutable:", "if False:", "a write that gives nothing is left out",
        "trace/test_writes.py -k gives_nothing",
    ),
    Slip(
        "trace/__init__.py", "return _for_each_row(step(inputs), kept)", "return step(inputs)",
        "gradients of an output that all rows share are those of one", "recurrent/test_sequences.py -k all_rows_share",
    ),
    Slip(
        "recurrent/bound.py", "results[slot] = results[slot] if state is None else state.clone()", "pass",
        "where no step happens a final state is not the state", "recurrent/test_starts.py -k no_step_happens",
    ),
    Slip(
        "recurrent/arguments.py", "if given.dim() > part.dim():", "if False:",
        "a step broadcasts a state with a dimension of layers", "recurrent/test_starts.py -k torchs_form",
    ),
    Slip(
        "recurrent/bound.py", "self._cut is not None and layout.is_cut and layout.cuts", "False",
        "a state that cannot be cut is",
        "recurrent/test_edges.py recurrent/test_sequences_refused.py recurrent/test_bound.py "
        "recurrent/test_bound_left.py",
    ),
    Slip(
        "recurrent/bound.py", "tensor.dtype is not dtype or tensor.device != device", "tensor.device != device",
        "a call in another dtype takes the program of the one before", "recurrent/test_bound_left.py -k dtype",
    ),
    Slip(
        "recurrent/programs.py", "if circuit.signature is not None and not circuit.signature.captured:",
        "if circuit.signature is not None:", "a cell computes with a tensor that another one has caught",
        "recurrent/test_trace_key.py recurrent/test_trace_key_weights.py trace/test_sees.py trace/test_sees_refused.py",
    ),
    Slip(
        "recurrent/pooling.py", "count > 0, torch.where(happens, outputs, -torch.inf).amax(0), 0",
        "count >= 0, torch.where(happens, outputs, -torch.inf).amax(0), 0",
        "the maximum over no steps is minus infinity", "recurrent/test_pooling.py",
    ),
)  # fmt: skip
