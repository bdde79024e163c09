"""Faults by hand: slips that somebody could make, and as few tests as will do to notice each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.mutants import Mutant, replaced


class Slip(NamedTuple):
    """file: in elman/. old: a text that is there once. breaks: what is wrong then. tests: pytest's arguments."""

    file: str
    old: str
    new: str
    breaks: str
    tests: str


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
    # --- circuit ---
    Slip(
        "circuit/verdict.py", "if mine is not None and mine.dim in _dims(_argument(node, argument), _rank(source)):",
        "if mine is not None and mine.dim - 1 in _dims(_argument(node, argument), _rank(source)):",
        "what runs along the batch counts as row by row", "circuit/test_rows.py",
    ),
    Slip(
        "circuit/verdict.py", "math.prod(before.shape[: mine.dim]) != math.prod(after.shape[: theirs.dim])", "False",
        "a reshape that moves the batch counts as row by row", "circuit/test_rows.py",
    ),
    Slip(
        "circuit/verdict.py", 'if mine is not None and mine.dim == dim:\n        return _mixing("the concatenation',
        'if mine is not None and mine.dim == dim + 1:\n        return _mixing("the concatenation',
        "a concatenation along the batch counts as row by row", "circuit/test_rows.py trace/test_refused.py",
    ),
    Slip(
        "circuit/linear.py", "        if len(linear) != 1:\n", "        if not linear:\n",
        "a product of two sums counts as a sum", "plan/test_linear.py",
    ),
    Slip(
        "circuit/linear.py", "return all(n not in summed and (constant(n) or is_zero(n)) for n in others)",
        "return True", "what changes from step to step counts as constant beside a sum", "plan/test_linear.py",
    ),
    Slip(
        "circuit/operations.py", '_unary("exp"),', '_unary("exp", linear=(0,)),', "the exponential counts as linear",
        "plan/test_linear.py",
    ),
    Slip(
        "circuit/operations.py", 'Operation("mm", RowRule.PRODUCT, bilinear=True, contracts=0, recomputed=False)',
        'Operation("mm", RowRule.PRODUCT, bilinear=True, contracts=0)',
        "products are computed again in the backward pass", "plan/test_structure.py -k kept",
    ),
    Slip(
        "circuit/structure.py", "mapping = dict(zip(structure[2], parts, strict=True))",
        "mapping = dict(zip(sorted(structure[2]), parts, strict=True))", "dicts come out in another order",
        "recurrent/test_cases.py -k dict",
    ),
    Slip(
        "circuit/rows.py", "    return int(ratio)\n", "    return 1\n",
        "rows merged with another dimension count as rows alone", "plan/test_laws.py -k merged",
    ),
    Slip(
        "circuit/graphs.py", 'return ("float", value.hex())', 'return ("float", value)',
        "0.0 and -0.0 are one number", "circuit/test_graphs.py",
    ),
    Slip(
        "circuit/graphs.py", "_freeze(tuple(sorted(node.kwargs.items())))", "None",
        "calls that differ in a keyword are merged", "circuit/test_graphs.py",
    ),
    # --- trace ---
    Slip(
        "trace/joint.py", "(result, _leads_to(value, leaves))", "(result, frozenset(leaves))",
        "outputs want gradients where no way leads to what wants one", "recurrent/test_requires_grad.py",
    ),
    Slip(
        "trace/values.py", "type(step) is int and step > 0", "type(step) is int",
        "what is expanded is taken for what lies row after row", "trace/test_values.py",
    ),
    Slip(
        "trace/record.py", "torch.Tag.data_dependent_output in func.tags", "False",
        "a number out of a tensor is not seen in a trace", "trace/test_record.py",
    ),
    Slip(
        "trace/normal.py", "    if alpha != 1:\n", "    if alpha == 0:\n", "addmm loses its alpha",
        "trace/test_normal.py",
    ),
    Slip(
        "trace/normal.py", "or any(a[1] != b[0] for a, b in zip(bounds, bounds[1:], strict=False))", "",
        "gradients of slices with a gap between them are put side by side", "trace/test_normal.py",
    ),
    Slip(
        "trace/normal.py",
        "low, high, source = low + int(source.args[2]), high + int(source.args[2]), source.args[0]",
        "low, high, source = low, high, source.args[0]", "a slice of a slice begins at the wrong place",
        "trace/test_normal.py",
    ),
    Slip(
        "trace/selfcheck.py", "    if not same:\n        raise TraceError(",
        "    if False:\n        raise TraceError(", "the self-check finds nothing", "trace/test_refused.py",
    ),
    Slip(
        "trace/selfcheck.py", "_agree(circuit, what, alone[name], together[name][row : row + 1], 3)",
        "pass", "a branch that only B = 1 takes is not seen", "trace/test_refused.py trace/test_sees.py",
    ),
    Slip(
        "trace/selfcheck.py", "if unruled else ((0,", "if not unruled else ((0,",
        "what writes into the first row alone is not seen", "trace/test_refused.py",
    ),
    Slip(
        "trace/watch.py", "if tensor.requires_grad is not flows:", "if tensor is None:",
        "freezing a weight does not trace anew", "recurrent/test_changes.py -k watch",
    ),
    Slip(
        "trace/initial.py", "if not _equal(alone, call(fitting[0])):", "if False:",
        "a cell that starts from something else starts from zeros", "recurrent/test_starts.py -k start",
    ),
    Slip(
        "trace/merged.py", "parts = [*shape[: where.dim], order, -1, where.factor // order, *shape[where.dim + 1 :]]",
        "parts = [*shape[: where.dim], where.factor // order, -1, order, *shape[where.dim + 1 :]]",
        "rows that others come before are put into the wrong order",
        "circuit/test_form.py -k 'stacked or nodes or heads or frames or columns'",
    ),
    Slip(
        "trace/parts.py", "1 / math.sqrt(query.shape[-1]) if scale is None", "1.0 if scale is None",
        "attention does not divide by the root of its width", "recurrent/test_attention.py",
    ),
    # --- adjoint ---
    Slip(
        "adjoint.py", "reverse=not circuit.reverse,", "reverse=circuit.reverse,",
        "the adjoint runs in the direction of its circuit", "test_adjoint.py",
    ),
    Slip(
        "adjoint.py", "    while name in taken:\n", "    while False:\n",
        "an input named as a cotangent is taken for it", "plan/test_borders.py",
    ),
    Slip(
        "adjoint.py", "gradient_of[name] = gradient_of[name] + total if name in gradient_of else total",
        "gradient_of[name] = total", "second derivatives forget a way by which a gradient comes",
        "plan/test_borders.py",
    ),
    Slip(
        "adjoint.py", "if final is not None and final.wire == port.next:", "if final is not None:",
        "a final state that is not what feeds its delay gets the wrong cotangent", "test_forcing.py test_adjoint.py",
    ),
    # --- unfold ---
    Slip(
        "unfold.py", "order = range(steps - 1, -1, -1) if circuit.reverse else range(steps)", "order = range(steps)",
        "a reversed circuit unfolds forward", "test_unfold.py plan/test_laws.py",
    ),
    # --- forcing ---
    Slip(
        "forcing.py", "w * taught + (1 - w) * own", "w * own + (1 - w) * taught",
        "a weighed teacher is weighed the wrong way round", "recurrent/test_sequences.py -k weighed",
    ),
    # --- noise ---
    Slip(
        "noise.py", "generator.manual_seed(_mix(seed, index, block))", "generator.manual_seed(_mix(seed, 0, block))",
        "two draws of a step are the same numbers", "test_noise.py",
    ),
    Slip(
        "noise.py", "return drawn[start - first * length : stop - first * length]", "return drawn[: stop - start]",
        "noise depends on where a sequence is cut", "test_noise.py",
    ),
    Slip(
        "noise.py", "key, count = _mix(seed, index, 0)", "key, count = _mix(seed, 0, 0)",
        "two native draws of a step are the same numbers", "test_noise.py",
    ),
    Slip(
        "noise.py", "wide, key, start, stop - start", "wide, key, 0, stop - start",
        "native noise depends on where a sequence is cut", "test_noise.py",
    ),
    Slip(
        "recurrent/dropout.py", "return _Dropped.apply(g, ctx.p, ctx.seed), None, None",
        "return _Dropped.apply(g, ctx.p, ctx.seed + 1), None, None",
        "the gradient of dropout leaves out other numbers", "recurrent/test_dropout.py",
    ),
    # --- plan ---
    Slip(
        "plan/rewrite.py", "                at += width\n            total = products[0]",
        "            total = products[0]", "all parts of a concatenation meet the same rows of the weight",
        "plan/test_laws.py -k 'cat_rnn'",
    ),
    Slip(
        "plan/rewrite.py", "            start = sum(map(_width, others[:at]))", "            start = 0",
        "a part of the loop's concatenation is read at its beginning", "plan/test_structure.py -k parts",
    ),
    Slip(
        "plan/rewrite.py", "        if list(graph.nodes) != before:  # whoever changes anything adds a node\n",
        "        if False:\n", "stages are those of the graph before it was rewritten",
        "plan/test_structure.py plan/test_laws.py",
    ),
    Slip(
        "plan/regions.py", "    kept = cycles | set(reasons)\n", "    kept = set(cycles)\n",
        "what cannot be hoisted is", "plan/test_structure.py plan/test_laws.py",
    ),
    Slip(
        "plan/cut.py", "        where.factor\n        * math.prod", "        1\n        * math.prod",
        "what is merged with rows counts for less than it takes",
        "plan/test_structure.py -k 'dearer and (nodes or merged)'",
    ),
    Slip(
        "plan/cut.py", "replace(port, kept=port.name) if port.name in states else port", "port",
        "a circuit does not know that it is given the sequence of a state",
        "plan/test_structure.py -k 'dearer and elman'",
    ),
    Slip(
        "plan/sink.py", "or (\n            node is not root and len(users) < len(node.users)\n        )", "",
        "what leaves the stage before is moved into the loop", "plan/test_borders.py",
    ),
    Slip(
        "plan/sink.py", "len(fresh) > 1", "len(fresh) > 9", "sinking takes more sequences than it spares",
        "plan/test_borders.py",
    ),
    Slip(
        "plan/builders.py", "        if not carries(value) or rows_of(value) == Rows(0, 1):\n", "        if True:\n",
        "a constant whose rows lie elsewhere goes into the loop as it is", "plan/test_borders.py",
    ),
    Slip(
        "plan/stages.py", "start = after.start_of(state) if state is not None else None", "start = None",
        "a final state off the loop forgets what it started from", "plan/test_laws.py recurrent/test_edges.py",
    ),
    Slip(
        "plan/stages.py", "after.call(times, after.from_once(node), rows, after.timeline())", "after.from_once(node)",
        "a sum of what is the same at every step is that of one step", "plan/test_borders.py",
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
        "recurrent/test_edges.py recurrent/test_doors.py test_nn_edges.py",
    ),
    Slip(
        "execute/program.py", "            reached |= fed ", "            break\n            reached |= fed ",
        "a state that brings a gradient at the next step is not seen to", "recurrent/test_requires_grad.py",
    ),
    Slip(
        "execute/program.py", 'tuple("copy" if shared else "own" for shared in sharing(self.circuit))',
        'tuple("own" for shared in sharing(self.circuit))', "an output lies in the memory of an input",
        "test_execute.py recurrent/test_edges.py test_nn_edges.py",
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
        "a state that cannot be cut is", "recurrent/test_edges.py recurrent/test_sequences.py recurrent/test_bound.py",
    ),
    Slip(
        "recurrent/bound.py", "tensor.dtype is not dtype or tensor.device != device", "tensor.device != device",
        "a call in another dtype takes the program of the one before", "recurrent/test_bound.py -k dtype",
    ),
    Slip(
        "recurrent/programs.py", "if circuit.signature is not None and not circuit.signature.captured:",
        "if circuit.signature is not None:", "a cell computes with a tensor that another one has caught",
        "recurrent/test_trace_key.py trace/test_sees.py",
    ),
    Slip(
        "recurrent/pooling.py", "count > 0, torch.where(happens, outputs, -torch.inf).amax(0), 0",
        "count >= 0, torch.where(happens, outputs, -torch.inf).amax(0), 0",
        "the maximum over no steps is minus infinity", "recurrent/test_pooling.py",
    ),
    # --- training ---
    Slip(
        "training/fit.py", 'if p.ndim <= 1], "weight_decay": 0.0}', 'if p.ndim <= 1], "weight_decay": weight_decay}',
        "biases decay", "test_training.py",
    ),
    Slip(
        "training/fit.py", 'if key in ("step", "exp_avg", "exp_avg_sq")', 'if key in ("step", "exp_avg")',
        "a restored run has forgotten its second moments", "test_survival.py test_training.py",
    ),
    Slip(
        "training/fit.py", "self.carried, self.batches.position = carried, tuple", "self.batches.position = tuple",
        "a restored run starts from a state of zeros", "test_survival.py test_training.py",
    ),
    Slip(
        "models/evaluating.py", "module.training = training", "module.training = True",
        "evaluating a model puts it into training mode", "models/test_evaluating.py",
    ),
    Slip(
        "models/evaluation.py", "if warm <= 0 else 0.0", "if warm < 0 else 0.0",
        "an estimate leaves out the first part that counts", "test_training.py",
    ),
    Slip(
        "training/checkpoint.py", 'whole = _digest(tensors, metadata["facts"]) == metadata["digest"]', "whole = True",
        "a checkpoint whose numbers were changed is taken", "test_survival.py",
    ),
    # --- data ---
    Slip(
        "data/windows.py", "if after + self.window <= length else (turn + 1, 0)",
        "if after + self.window < length else (turn + 1, 0)", "the last whole window of the lanes is left out",
        "test_data.py",
    ),
    Slip(
        "data/windows.py", "fresh = t == 0 or", "fresh =",
        "a new pass over the text goes on from the state at its end", "test_data.py",
    ),
    Slip(
        "data/schema.py", "right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most",
        "right = isinstance(value, int) and least <= value <= most", "true counts as a number in a file",
        "test_strangers.py test_data.py",
    ),
    Slip(
        "data/cache.py", "_name('tokenizer', kind, vocabulary, text.digest)",
        "_name('tokenizer', kind, vocabulary, '')", "a tokenizer of another text is taken from the cache",
        "test_text.py",
    ),
    # --- models ---
    Slip(
        "models/readout.py", "g *= scale\n", "pass\n", "the gradient of the loss is that of the sum",
        "models/test_readout.py",
    ),
    Slip(
        "models/readout.py", "sorted_dh[rows] += own", "pass", "what a group says of h is lost",
        "models/test_readout.py",
    ),
    Slip(
        "models/surprisal.py", "self.word.add(rest, max(bits - part, 0.0), unknown)",
        "self.word.add(rest, bits, unknown)", "the blank in front of a byte pair counts to its word",
        "models/test_surprisal.py",
    ),
    Slip(
        "models/sampler.py", "scores = torch.where(_above(scores, torch.ones_like(scores)) < self.top_k",
        "scores = torch.where(_above(scores, torch.ones_like(scores)) <= self.top_k", "top_k keeps one symbol more",
        "models/test_sampler.py",
    ),
)  # fmt: skip


def mutants() -> Iterator[Mutant]:
    for slip in SLIPS:
        change = replaced(slip.old, slip.new)
        yield Mutant(
            f"{slip.file}: {slip.breaks}", "by hand", f"elman/{slip.file}", change, slip.breaks, (slip.tests,)
        )
