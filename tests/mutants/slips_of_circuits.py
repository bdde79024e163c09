"""Slips in what is made of a cell before anything runs: its circuit, the trace, adjoint, noise and plan."""

from __future__ import annotations

from tests.mutants.slip import Slip

SLIPS = (
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
        "pass", "a branch that only B = 1 takes is not seen",
        "trace/test_refused.py trace/test_sees.py trace/test_sees_refused.py",
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
        "a weighed teacher is weighed the wrong way round", "recurrent/test_teachers.py -k weighed",
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
)  # fmt: skip
