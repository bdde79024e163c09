"""What a plan looks like: what is sequential, what is hoisted, what is kept. Tables, so that a change shows."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import fx, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import elman
from elman.circuit import graphs
from elman.circuit.form import ROWS, Kind, op_name
from elman.forcing import force
from elman.noise import is_random
from elman.plan import plan
from elman.plan.cost import bytes_kept
from elman.plan.cut import pair
from elman.plan.form import TIMELINE, Loop, Plan, Stage, operations, shift
from elman.plan.rewrite import _read_in_place
from elman.trace import trace
from tests.cases import CASES
from tests.circuits import circuit_of, pair_of, plan_of, training_of
from tests.pairwise import with_more

aten = torch.ops.aten
PRODUCTS = ("mm", "addmm", "bmm", "convolution")
WIDTH = 7 * 8  # bytes of H floats in float64


def counted(part: Stage | Loop | None) -> Counter[str]:
    return Counter(op_name(node) for node in part.nodes()) if part is not None else Counter()


def products(part: Stage | Loop | None) -> int:
    return sum(counted(part)[name] for name in PRODUCTS)


def size(made: Plan) -> int:
    return len(made.loop.nodes()) if made.loop is not None else 0


def graphs_of(made: Plan) -> list[fx.Graph]:
    return [stage.graph for stage in made.stages()] + ([made.loop.graph] if made.loop is not None else [])


def origin(made: Plan, port: str) -> fx.Node:
    """The node of the after stage that an output port returns."""
    out = next(node for node in made.after.graph.nodes if node.op == "output").args[0]
    return out[made.outputs[port]]


# --- the book's network -------------------------------------------------------------------------------------


def test_the_books_loop_is_one_product_and_one_tanh() -> None:
    made = plan_of("elman")
    assert counted(made.loop) == {"addmm": 1, "tanh": 1}
    assert products(made.before) == 1, "U x + b for all steps at once"
    assert len(made.loop.constants) == 1
    assert len(made.loop.sequences) == 1
    assert [state.name for state in made.loop.states] == ["h"]
    assert made.after.nodes() == []
    assert made.reasons == {}


def test_the_adjoint_loop_of_the_books_network_is_one_product() -> None:
    forward, backward = training_of("elman")
    assert counted(forward.loop) == {"addmm": 1, "tanh": 1}
    assert counted(backward.loop) == {"add": 1, "tanh_backward": 1, "mm": 1}
    assert backward.loop.sums == ()
    assert products(backward.after) == 3, "dU, dW and dx, each one product over all rows"
    for port in ("d_U", "d_W", "d_b", "d_x"):
        assert origin(backward, port).op == "call_function"
    assert op_name(origin(backward, "d_U")) in PRODUCTS
    assert op_name(origin(backward, "d_W")) in PRODUCTS
    assert op_name(origin(backward, "d_x")) in PRODUCTS
    sums = [node for node in backward.after.nodes() if op_name(node) == "sum"]
    assert len(sums) == 1, "db"
    assert products(backward.before) == 0, "nothing is multiplied again"


# --- loop sizes ---------------------------------------------------------------------------------------------

# case -> operations in the loop forward, backward; the bound of the first prototypes where there is one.
SIZES = {
    "elman": (2, 3, (3, 3)),
    "jordan": (3, 4, (5, 8)),
    "gru": (14, 12, (14, 13)),
    "lstm": (14, 15, (15, 15)),
    "leaky": (5, 5, None),
    "torch_rnn_tanh": (2, 3, (3, 3)),
    "torch_rnn_relu": (2, 3, (3, 3)),
    "torch_gru": (14, 12, (14, 13)),
    "torch_lstm": (14, 15, (15, 15)),
    "layer_norm_rnn": (3, 4, None),
    "layer_norm_lstm": (17, 17, (28, 43)),
    "dale_rnn": (5, 5, None),
    "delayed_rnn": (2, 3, None),
    "cat_rnn": (2, 3, None),
    "context_rnn": (2, 3, None),
    "weight_norm_rnn": (2, 3, None),
    "loss_rnn": (2, 3, None),
    "linear_rnn": (1, 2, None),
    "ind_rnn": (3, 3, None),
    "cut_rnn": (2, 0, None),
}
ALIKE = ["torch_rnn_relu", "torch_lstm", "layer_norm_lstm", "dale_rnn"]  # like others in the table


@pytest.mark.parametrize("name", with_more([n for n in SIZES if n not in ALIKE], ALIKE))
def test_loop_sizes(name: str) -> None:
    forward, backward = training_of(name)
    ahead, back, bound = SIZES[name]
    assert (size(forward), size(backward)) == (ahead, back)
    assert size(plan_of(name)) == ahead, "keeping something adds nothing to the loop"
    if bound is not None:
        assert ahead <= bound[0]
        assert back <= bound[1]


@pytest.mark.parametrize(
    ("name", "ahead", "back"), [("elman", 1, 1), ("gru", 1, 1), ("lstm", 1, 1), ("jordan", 2, 2), ("leaky", 1, 1),
    ("two_level_gru", 3, 3), ("mgu", 2, 2), ("ind_rnn", 0, 0), ("linear_rnn", 0, 0), ("cat_rnn", 1, 1),
    ("delayed_rnn", 1, 1), ("token_rnn", 1, 1), ("loss_rnn", 1, 1)],
)  # fmt: skip
def test_products_in_the_loop(name: str, ahead: int, back: int) -> None:
    forward, backward = training_of(name)
    assert products(forward.loop) == ahead
    assert products(backward.loop) == back


@pytest.mark.parametrize(
    ("name", "cut", "states"), [("elman", 1, 1), ("gru", 5, 1), ("lstm", 6, 2), ("leaky", 2, 1)]
)
def test_what_is_kept(name: str, cut: int, states: int) -> None:
    """In units of H floats per row and step."""
    assert pair_of(name).bytes_per_row == cut * WIDTH
    assert bytes_kept(pair_of(name).forward) == cut * WIDTH
    assert pair_of(name, policy="states").bytes_per_row == states * WIDTH
    assert bytes_kept(circuit_of(name)) == cut * WIDTH


@pytest.mark.parametrize("name", CASES)
def test_the_cut_is_never_dearer_than_the_states_and_what_comes_of_them(name: str) -> None:
    """States alone are free of products only where the step has none; else the cut keeps their results too."""
    both = pair_of(name)
    assert set(both.kept) == {o.name for o in both.forward.outputs} - {
        o.name for o in circuit_of(name).outputs
    }
    assert set(both.kept.values()) <= {port.name for port in both.backward.inputs}
    assert all(port.kept == port.name for port in both.backward.inputs if port.name in both.kept.values())
    assert bytes_kept(both.forward) == both.bytes_per_row
    assert bytes_kept(both.backward) == 0 or not both.kept
    backward = training_of(name)[1]
    recomputed = [n.name for n in backward.loop.nodes() if n.meta.get("primal")] if backward.loop else []
    assert not recomputed, "what is computed again is computed before the adjoint's loop"


def test_without_a_wish_for_gradients_of_weights_less_is_kept() -> None:
    circuit = circuit_of("elman")
    assert pair(circuit, ["x"]).bytes_per_row == WIDTH
    back = plan(pair(circuit, ["x"]).backward)
    assert set(back.outputs) == {"d_x"}
    assert products(back.after) == 1


# --- what leaves the loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jordan", "elman", "gru"])
def test_a_forced_network_has_no_loop(name: str) -> None:
    forced = force(circuit_of(name))
    made = plan(forced)
    assert made.loop is None
    assert any(node.target is shift for node in made.before.nodes() + made.after.nodes()), "h(t-1) is a shift"
    both = pair(forced)
    assert plan(both.forward).loop is None
    assert plan(both.backward).loop is None


def test_what_depends_on_weights_alone_is_computed_once() -> None:
    dale = plan_of("dale_rnn")
    assert {"abs", "mul"} <= set(counted(dale.once))
    assert "abs" not in counted(dale.loop) + counted(dale.before)
    norm = plan_of("weight_norm_rnn")
    assert any("norm" in name or name in ("div", "mul", "sqrt") for name in counted(norm.once))
    assert size(norm) == 2
    skew = plan_of("antisymmetric_rnn")
    assert counted(skew.once)["sub"] == 2
    assert counted(skew.loop)["sub"] == 0
    times = plan_of("time_constants")
    assert "exp" in counted(times.once)
    assert "exp" not in counted(times.loop) + counted(times.before)


@pytest.mark.parametrize("name", ["dale_rnn", "weight_norm_rnn", "antisymmetric_rnn"])
def test_the_adjoint_of_a_constraint_runs_once_too(name: str) -> None:
    backward = training_of(name)[1]
    assert "abs" not in counted(backward.loop)
    assert products(backward.loop) == 1
    assert backward.loop.sums == ()


def test_a_context_is_computed_on_once_per_row() -> None:
    made = plan_of("context_rnn")
    assert products(made.once) == 1, "C context, on B rows"
    assert products(made.before) == 1
    assert size(made) == 2
    attention = plan_of("attention_rnn")
    assert products(attention.once) >= 1, "K places, on B rows"


def test_delays_on_no_cycle_are_shifts() -> None:
    made = plan_of("delayed_rnn")
    assert len(made.loop.states) == 1
    assert counted(made.before)["shift"] == 2, "x(t-1) and x(t-2)"
    assert size(made) == 2
    backward = training_of("delayed_rnn")[1]
    assert len(backward.loop.states) == 1
    assert size(backward) == 3


def test_a_cell_of_delays_alone_has_no_loop() -> None:
    from elman.trace import trace

    class Delays(torch.nn.Module):
        """The difference to the step before the last."""

        def forward(self, x: torch.Tensor, s: tuple[torch.Tensor, torch.Tensor]):  # type: ignore[no-untyped-def]
            return x - s[1], (x, s[0])

    x = torch.randn(2, 3)
    circuit = trace(Delays(), x, (x.clone(), x.clone()))
    made = plan(circuit)
    assert made.loop is None
    assert sum(node.target is shift for stage in made.stages() for node in stage.nodes()) == 2
    assert plan(pair(circuit).backward).loop is None


def test_side_by_side_is_split_into_two_products() -> None:
    made = plan_of("cat_rnn")
    assert counted(made.loop) == {"addmm": 1, "tanh": 1}
    assert products(made.before) >= 1, "the part of x"
    assert "cat" not in counted(made.loop)
    assert products(made.after) >= 1, "the output's product waits for no step"
    assert "_log_softmax" in counted(made.after)


def test_parts_that_lie_side_by_side_are_read_as_one_slice() -> None:
    graph, widths = fx.Graph(), {"a": 2, "b": 3, "c": 4, "d": 5}
    a, b, c, d = (graphs.add_placeholder(graph, name, torch.ones(1, wide)) for name, wide in widths.items())
    whole = graphs.insert(graph, aten.cat.default, [a, b, c], 1, val=torch.ones(1, 9))
    with FakeTensorMode() as mode:
        for node in graph.nodes:
            node.meta["val"] = mode.from_tensor(node.meta["val"])
    read = [
        node.args if node not in (a, b, c, d) else node
        for node in _read_in_place(graph, [d, b, c, a], [whole])
    ]
    assert read == [d, (whole, 1, 2, 9), (whole, 1, 0, 2)]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.noise])
def test_noise_is_lifted(name: str) -> None:
    for made in (plan_of(name), *training_of(name)):
        for graph in graphs_of(made):
            assert not any(is_random(node) for node in operations(graph))
    assert circuit_of(name).inputs_of(Kind.NOISE)
    drawn = {port.name for port in circuit_of(name).inputs_of(Kind.NOISE)}
    assert {port.name for port in training_of(name)[1].circuit.inputs_of(Kind.NOISE)} <= drawn


def test_noise_that_no_cycle_needs_stays_outside() -> None:
    made = plan_of("dropout_rnn")
    assert len(made.loop.sequences) <= 3
    assert counted(made.loop) == {"addmm": 1, "tanh": 1, "mul": 2}
    assert counted(made.before)["lt"] == 2, "masks are made for all steps at once"


# --- sums over time -----------------------------------------------------------------------------------------

# Cells in which something is added up step by step, with what makes it so.
SUMMED_IN_THE_LOOP = {"clipped_rnn"}


@pytest.mark.parametrize("name", CASES)
def test_sums_over_time_are_single_operations(name: str) -> None:
    """dU, dW, db are each one operation on the rows of all steps; where they are not, the plan says why."""
    backward = training_of(name)[1]
    if backward.loop is None:
        assert name == "cut_rnn", "nothing flows back in time"
    elif name in SUMMED_IN_THE_LOOP:
        assert backward.loop.sums
        assert backward.reasons
        assert all(why.strip() for why in backward.reasons.values())
    else:
        assert backward.loop.sums == ()
        assert backward.reasons == {}


@pytest.mark.parametrize("name", CASES)
def test_nothing_off_the_cycles_is_in_a_forward_loop(name: str) -> None:
    """Every operation of the loop depends on a state, and a state depends on it."""
    made = plan_of(name)
    assert made.reasons == {}
    loop = made.loop
    assert loop is not None
    out = next(node for node in loop.graph.nodes if node.op == "output").args[0]
    ends = {out[state.next] for state in loop.states if state.next is not None}
    starts = {
        n for n in loop.graph.nodes if n.op == "placeholder" and n.target in {s.name for s in loop.states}
    }
    sizes = {n for n in loop.graph.nodes if n.target == ROWS}
    for node in loop.nodes():
        if any(source in sizes for source in node.all_input_nodes) and not node.all_input_nodes[1:]:
            continue  # a shape
        if _at_the_border(node, "placeholder", lambda n: n.all_input_nodes) or _at_the_border(
            node, "output", lambda n: n.users
        ):
            continue  # what comes in and goes out has its rows first, wherever the step has them
        assert _meets(node, starts, lambda n: n.all_input_nodes), f"{node} depends on no state"
        assert _meets(node, ends, lambda n: n.users), f"no state depends on {node}"


def _at_the_border(node: fx.Node, end: str, way) -> bool:  # type: ignore[no-untyped-def]
    return op_name(node) in ("permute", "reshape") and all(
        n.op == end or _at_the_border(n, end, way) for n in way(node)
    )


def _meets(node: fx.Node, wanted: set[fx.Node], way) -> bool:  # type: ignore[no-untyped-def]
    seen, pending = set(), [node]
    while pending:
        one = pending.pop()
        if one in wanted:
            return True
        if one not in seen:
            seen.add(one)
            pending.extend(way(one))
    return False


# --- one plan for all lengths -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_neither_steps_nor_batch_occur_in_a_plan(name: str) -> None:
    """Sizes in a plan's operations are widths; the only thing known of the batch is the symbol, of time nothing."""
    for made in (plan_of(name), *training_of(name)):
        for graph in graphs_of(made):
            for node in graph.nodes:
                if node.op == "placeholder":
                    continue
                for arg in torch.utils._pytree.tree_leaves((node.args, node.kwargs)):
                    assert not isinstance(arg, torch.SymInt)
                    assert (
                        not isinstance(arg, int)
                        or isinstance(arg, bool)
                        or abs(arg) < 1000
                        or abs(arg) >= 2**31
                    ), f"{node} holds {arg}: the batch that the tracer pretends to see?"
            names = {str(node.target) for node in graph.nodes if node.op == "placeholder"}
            if made.loop is not None and graph is made.loop.graph:
                assert TIMELINE not in names


class Again(nn.Module):
    """h + sin(z), z a product of h: the backward pass reads z, which h says, if it is computed again."""

    def __init__(self, product: str) -> None:
        super().__init__()
        self.hidden_size, self.product = 7, product
        shapes = {"mm": (7, 7), "bmm": (3, 7, 7), "addmm": (7, 7), "convolution": (1, 1, 3)}
        self.w, self.b = nn.Parameter(torch.randn(shapes[product])), nn.Parameter(torch.randn(7))

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        if self.product == "convolution":
            z = F.conv1d(h.unsqueeze(1), self.w, padding=1).squeeze(1)
        elif self.product == "bmm":
            z = torch.bmm(h.expand(3, -1, -1), self.w).sum(0)
        else:
            z = h @ self.w if self.product == "mm" else torch.addmm(self.b, h, self.w)
        return h + torch.sin(z) + x


@pytest.mark.parametrize("product", ["mm", "addmm", "bmm", "convolution"])
def test_a_product_is_kept_rather_than_computed_again(product: str) -> None:
    circuit = trace(Again(product).double(), torch.zeros(2, 7).double(), torch.zeros(2, 7).double())
    both = pair(circuit)
    assert both.bytes_per_row >= 2 * WIDTH
    assert products(plan(both.backward).before) == 0


class _Unread(nn.Module):
    """Of what a product makes one part is read by nothing: its gradient is a concatenation with zeros, made early."""

    def __init__(self, unread: int) -> None:
        super().__init__()
        self.hidden_size, self.unread = 8, unread
        self.W = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        one, two = [part for i, part in enumerate(self.W(h).chunk(3, -1)) if i != self.unread]
        return torch.tanh(one * two + x)


@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("unread", [0, 1, 2])
def test_a_part_of_a_product_that_nothing_reads(unread: int, engine: str) -> None:
    torch.manual_seed(0)
    cell, x, h = _Unread(unread).double(), torch.randn(3, 2, 8).double(), torch.zeros(2, 8).double()
    rnn = elman.Recurrent(cell, engine=engine)
    made = torch.autograd.grad(rnn(x)[0].sum(), list(cell.parameters()))
    steps = []
    for x_t in x:
        steps.append(h := cell(x_t, h))
    for one, right in zip(
        made, torch.autograd.grad(sum(s.sum() for s in steps), list(cell.parameters())), strict=True
    ):
        torch.testing.assert_close(one, right)
        assert not right.unflatten(0, (3, 8))[unread].any()
    loop = plan(pair(rnn.circuit).backward).loop
    assert loop is not None
    assert not any(n.target is aten.sum.dim_IntList for n in loop.nodes()), "zeros are no sum of another kind"
