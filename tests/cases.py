"""The one table of cells x shapes x dtypes: parity tests, structure tests and benchmarks take their cells from here.

    case = CASES["lstm"]
    cell = case.make().to(dtype)                     # or make(I, H)
    x = case.x(T, B, generator, dtype)               # tensors [T, B, …], nested as the cell wants them, or None
    state = case.state(B, generator, dtype)          # tensors [B, …]
    context = case.context(B, generator, dtype)      # tensors [B, …], or None

The same generator gives the same numbers in every dtype, up to rounding. A cell met in the wild goes into tests/zoo.py
and here. REFUSED holds the cells that can not be circuits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from elman import cells
from tests import zoo, zoo_gradients, zoo_operations, zoo_rows
from tests.refused import REFUSED, Refused
from tests.tensors import Leaf, bools, draw, floats, integers, zeros

__all__ = ["CASES", "DTYPES", "REFUSED", "SELDOM", "SHAPES", "Case", "Refused", "Shape"]

Tensor = torch.Tensor
Tree = Any

INPUT, HIDDEN = 5, 7


@dataclass(frozen=True)
class Case:
    """A cell and what it takes.

    build: (I, H) -> cell, in the default dtype, in training mode. inputs, states, contexts: trees of `Leaf`.
    noise: it draws random numbers. honest: its gradient is the derivative of what it computes, away from a few kinks
    (gradcheck holds). twice: its second derivatives by autograd are there and, if honest, right (gradgradcheck holds).
    starts: it can be run without a state. teachable: its output is an entry of its state.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    inputs: Tree
    states: Tree
    contexts: Tree = None
    noise: bool = False
    honest: bool = True
    twice: bool = True
    starts: bool = True
    teachable: bool = True

    def make(self, n_in: int = INPUT, n_hidden: int = HIDDEN) -> nn.Module:
        """A fresh cell, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)  # sooner than torch.manual_seed: tests/conftest.py
            return self.build(n_in, n_hidden)

    def x(
        self,
        T: int,
        B: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
        n_in: int = INPUT,
        n_hidden: int = HIDDEN,
    ) -> Tree:
        return draw(self.inputs, (T, B), generator, dtype, n_in, n_hidden)

    def state(
        self,
        B: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
        n_in: int = INPUT,
        n_hidden: int = HIDDEN,
    ) -> Tree:
        return draw(self.states, (B,), generator, dtype, n_in, n_hidden)

    def context(
        self,
        B: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
        n_in: int = INPUT,
        n_hidden: int = HIDDEN,
    ) -> Tree:
        return draw(self.contexts, (B,), generator, dtype, n_in, n_hidden)

    def steps(self, T: int) -> int | None:
        """What to pass as `steps`: T for a cell without x, else None."""
        return None if any(isinstance(leaf, Leaf) for leaf in pytree.tree_leaves(self.inputs)) else T

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Shape:
    """Sizes to run a case at; odd ones find what powers of two hide."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T}-B{self.B}-I{self.I}-H{self.H}"


SHAPES = (
    Shape(1, 1, 5, 7),
    Shape(5, 3, 5, 7),
    Shape(63, 1, 3, 17),
    Shape(7, 13, 34, 36),
    Shape(3, 2, 16, 68),
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)

X, H = floats("I"), floats("H", scale=0.5)
LSTM = (H, floats("H", scale=0.5))

_TABLE = (
    # Shipped.
    Case("elman", cells.Elman, X, H),
    Case("jordan", lambda i, h: cells.Jordan(i, h, 4), X, floats(4, scale=0.5)),
    Case("gru", cells.GRU, X, H),
    Case("lstm", cells.LSTM, X, LSTM),
    Case("leaky", cells.Leaky, X, H),
    Case("elman_without_bias", lambda i, h: cells.Elman(i, h, bias=False), X, H),
    # torch's own.
    Case("torch_rnn_tanh", nn.RNNCell, X, H),
    Case("torch_rnn_relu", lambda i, h: nn.RNNCell(i, h, nonlinearity="relu"), X, H),
    Case("torch_gru", nn.GRUCell, X, H),
    Case("torch_lstm", nn.LSTMCell, X, LSTM),
    # Normalised, noisy, gated.
    Case("layer_norm_rnn", zoo.LayerNormRNN, X, H),
    Case("layer_norm_lstm", zoo.LayerNormLSTM, X, LSTM),
    Case("zoneout_lstm", zoo.ZoneoutLSTM, X, LSTM, noise=True, starts=False),
    Case("zoneout_lstm_eval", lambda i, h: zoo.ZoneoutLSTM(i, h).eval(), X, LSTM, starts=False),
    Case("bernoulli_rnn", zoo.BernoulliRNN, X, H, noise=True),
    Case("dropout_rnn", zoo.DropoutRNN, X, H, noise=True, teachable=False),
    Case("dropout_rnn_eval", lambda i, h: zoo.DropoutRNN(i, h).eval(), X, H),
    Case("noisy_rnn", zoo.NoisyRNN, X, H, noise=True),
    Case("mgu", zoo.MGU, X, H),
    Case("multiplicative_lstm", zoo.MultiplicativeLSTM, X, LSTM, starts=False),
    Case("two_level_gru", zoo.TwoLevelGRU, X, (H, H), starts=False),
    Case("cat_rnn", zoo.CatRNN, X, H, teachable=False),
    Case("hand_sliced_lstm", zoo.HandSlicedLSTM, X, LSTM, starts=False),
    Case("in_place_rnn", zoo.InPlaceRNN, X, H),
    # Constraints on weights.
    Case("dale_rnn", zoo.DaleRNN, X, H),
    Case("antisymmetric_rnn", zoo.AntisymmetricRNN, X, H),
    # The second derivative of torch._weight_norm by its direction is wrong in PyTorch 2.13, without an error.
    Case("weight_norm_rnn", zoo.WeightNormRNN, X, H, twice=False),
    Case("tied_rnn", zoo.TiedRNN, X, H, teachable=False),
    Case("ind_rnn", zoo.IndRNN, X, H),
    Case("time_constants", zoo.TimeConstants, X, H),
    # What comes in and what is kept.
    Case("dict_input_rnn", zoo.DictInputRNN, {"signal": X, "open": floats(1)}, H),
    Case("named_tuple_lstm", zoo.NamedTupleLSTM, X, zoo.Memory(*LSTM), starts=False),
    Case("delayed_rnn", zoo.DelayedRNN, X, {"h": H, "x1": X, "x2": X}, starts=False),
    Case("twin_rnn", zoo.TwinRNN, X, LSTM, starts=False, teachable=False),
    Case("swing", zoo.Swing, None, H, starts=False, teachable=False),
    Case("henon", zoo.Henon, None, LSTM, starts=False),
    Case("context_rnn", zoo.ContextRNN, X, H, floats(4)),
    Case("attention_rnn", zoo.AttentionRNN, X, H, {"places": floats(3, 4), "hide": bools(3, below=-1.0)}),
    Case("silent_rnn", zoo.SilentRNN, X, H, teachable=False),
    Case("loss_rnn", zoo.LossRNN, (X, integers(6)), H, teachable=False),
    Case("token_rnn", zoo.TokenRNN, integers(6), H),
    Case("dict_output_rnn", zoo.DictOutputRNN, X, H, teachable=False),
    Case("learned_start_rnn", zoo.LearnedStartRNN, X, H),
    Case("counting_rnn", zoo.CountingRNN, X, (H, integers(5)), starts=False),
    Case("latch_rnn", zoo.LatchRNN, X, (H, bools("H", below=-1.5)), starts=False),
    # The batch elsewhere than in front.
    Case("columns_rnn", zoo_rows.ColumnsRNN, X, H),
    Case("column_rates_rnn", zoo_rows.ColumnRatesRNN, X, LSTM, starts=False, teachable=False),
    Case("gates_first_gru", zoo_rows.GatesFirstGRU, X, H),
    Case("stacked_columns_gru", zoo_rows.StackedColumnsGRU, X, H),
    Case("merged_heads_rnn", zoo_rows.MergedHeadsRNN, X, floats(2, "2H", scale=0.5), starts=False, teachable=False),
    Case("nodes_rnn", zoo_rows.NodesRNN, X, floats(3, "H", scale=0.5), starts=False),
    Case("nodes_inner_gru", zoo_rows.NodesInnerGRU, X, floats(3, "H", scale=0.5), starts=False, teachable=False),
    Case("frames_gru", zoo_rows.FramesGRU, floats(2, 1, 3, "H"), H, starts=False),
    Case("batch_in_the_middle_rnn", zoo_rows.BatchInTheMiddleRNN, X, H, teachable=False),
    Case("stacked_inputs_rnn", zoo_rows.StackedInputsRNN, X, H),
    Case("flattened_first_rnn", zoo_rows.FlattenedFirstRNN, X, H),
    # A gradient that is not the derivative.
    Case("straight_through_rnn", zoo_gradients.StraightThroughRNN, X, H, honest=False),
    Case("rounded_rnn", zoo_gradients.RoundedRNN, X, H, honest=False),
    Case("lying_rnn", zoo_gradients.LyingRNN, X, H, honest=False),
    Case("spiking_rnn", zoo_gradients.SpikingRNN, X, (H, zeros("H")), honest=False),
    Case("detached_rnn", zoo_gradients.DetachedRNN, X, H, honest=False),
    Case("no_grad_rnn", zoo_gradients.NoGradRNN, X, H, honest=False),
    Case("clipped_rnn", zoo_gradients.ClippedRNN, X, H, honest=False),
    Case("cut_rnn", zoo_gradients.CutRNN, X, H, honest=False),
    # Operations.
    # PyTorch has no second derivative of hardsigmoid; for ours see tests/test_second_derivatives.py.
    Case("hard_gru", zoo_operations.HardGRU, X, H, twice=False),
    Case("smooth_rnn", zoo_operations.SmoothRNN, X, H),
    Case("kinked_rnn", zoo_operations.KinkedRNN, X, H),
    Case("root_mean_square_rnn", zoo_operations.RootMeanSquareRNN, X, H),
    Case("standardised_rnn", zoo_operations.StandardisedRNN, X, H),
    Case("competing_rnn", zoo_operations.CompetingRNN, X, H, teachable=False),
    Case("fast_weights_rnn", zoo_operations.FastWeightsRNN, X, (H, floats("H", "H", scale=0.1))),
    Case("slots_rnn", zoo_operations.SlotsRNN, X, floats(3, "H", scale=0.5), starts=False, teachable=False),
    Case("heads_rnn", zoo_operations.HeadsRNN, X, floats("3H", scale=0.5)),
    Case("addressing_rnn", zoo_operations.AddressingRNN, X, H),
    Case("pointer_rnn", zoo_operations.PointerRNN, (X, integers(100)), H, teachable=False),
    Case("accumulating_rnn", zoo_operations.AccumulatingRNN, X, H),
    Case("convolutional_rnn", zoo_operations.ConvolutionalRNN, X, floats(2, "H", scale=0.5), starts=False),
    Case(
        "conv_lstm", zoo_operations.ConvLSTM, floats(1, 3, "H"),
        (floats(2, 3, "H", scale=0.5), floats(2, 3, "H", scale=0.5)), starts=False,
    ),
    Case("linear_rnn", zoo_operations.LinearRNN, X, H, teachable=False),
    Case("baddbmm_rnn", zoo_operations.BaddbmmRNN, X, H),
)  # fmt: skip

# What they show another case shows too, or a test of their operations (tests/circuit/test_table.py and in
# tests/engines/): tests that run the whole table leave them to `make conformance`.
SELDOM = (
    "elman_without_bias", "torch_rnn_tanh", "torch_rnn_relu", "torch_gru", "torch_lstm", "layer_norm_lstm",
    "zoneout_lstm_eval", "bernoulli_rnn", "dropout_rnn_eval", "mgu", "multiplicative_lstm", "two_level_gru",
    "hand_sliced_lstm", "dale_rnn", "antisymmetric_rnn", "ind_rnn", "time_constants", "henon", "gates_first_gru",
    "stacked_columns_gru", "column_rates_rnn", "nodes_rnn", "nodes_inner_gru", "frames_gru", "batch_in_the_middle_rnn",
    "stacked_inputs_rnn", "spiking_rnn", "no_grad_rnn", "detached_rnn", "heads_rnn", "slots_rnn", "hard_gru",
    "smooth_rnn", "kinked_rnn", "root_mean_square_rnn", "standardised_rnn", "competing_rnn", "accumulating_rnn",
    "conv_lstm", "baddbmm_rnn",
)  # fmt: skip

CASES: Mapping[str, Case] = {case.name: case for case in _TABLE}
assert len(CASES) == len(_TABLE), "two cases have one name"
assert set(SELDOM) < set(CASES)
