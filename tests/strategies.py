"""Random cells, for hypothesis: `random_cells()` draws an ordinary nn.Module whose step nobody has thought of.

    @given(random_cells())
    def test_something(cell):
        x, state = cell.sequence(T, B, generator), cell.start(B, generator)
        eager.unroll(cell, x, state, steps=cell.steps(T))

A program shrinks to few lines of few values, and prints as code (tests/random_cells.py).
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.random_cells import MOST, NESTINGS, RULES, Instruction, Next, Program, RandomCell

# What values may grow to; a longer chain of products would leave the numbers behind.
LIMIT = 30.0
INPUT, STATE = 3.0, 1.0  # bounds of x and of a state


@st.composite
def programs(
    draw: st.DrawFn, *, noise: bool = True, autonomous: bool = True, lines: int = 14, detach: bool = True,
    rich: bool = False,
) -> Program:  # fmt: skip
    """A random program of at most `lines` instructions with one to three states.

    noise: it may draw random numbers. autonomous: it may have no x. detach: its gradient may not be the derivative.
    rich: it may be of every kind: attention, complex numbers, backwards of its own, a context, a counter among its
    states, nested arguments, a learned start.
    """
    inputs = draw(st.integers(1, 4))
    if autonomous and draw(st.integers(0, 9)) == 9:
        inputs = None
    states = tuple(draw(st.lists(st.integers(1, MOST), min_size=1, max_size=3)))
    context = draw(st.none() | st.integers(1, 4)) if rich else None
    counter = draw(st.sampled_from((0, 0, 0, 3, 5))) if rich else 0
    nesting = draw(st.sampled_from(("flat", *NESTINGS))) if rich else "flat"
    learned = rich and draw(st.booleans())
    head = Program(inputs, states, (), (), None, 0, context, counter, nesting, learned)
    widths = head.given
    bounds = [STATE for _ in widths] if inputs is None else [INPUT, *(STATE for _ in widths[1:])]
    allowed = [
        name
        for name, rule in RULES.items()
        if (noise or not rule.noise) and (detach or rule.honest) and (rich or not rule.rich)
    ]
    body: list[Instruction] = []
    for _ in range(draw(st.integers(1, lines))):
        name = draw(st.sampled_from(allowed))
        rule = RULES[name]
        fitting = [i for i, width in enumerate(widths) if rule.arity > 1 or rule.fits(width)] or list(
            range(len(widths))
        )
        first = draw(_recent(fitting))
        partners = [i for i, width in enumerate(widths) if not rule.alike or width == widths[first]]
        operands = (first, *(draw(st.sampled_from(partners)) for _ in range(rule.arity - 1)))
        size = draw(st.integers(1, MOST)) if rule.sized else 0
        taken = [widths[i] for i in operands]
        bound = rule.bound(*(bounds[i] for i in operands))
        if not rule.fits(*taken) or bound > LIMIT:
            # What does not fit becomes what always fits, so that no draw is thrown away.
            name, operands, size = ("product" if bound <= LIMIT else "tanh"), operands[:1], 0
            rule, taken = RULES[name], taken[:1]
            bound = rule.bound(bounds[first])
        body.append(Instruction(name, operands, size))
        widths.append(rule.width(size, *taken))
        bounds.append(bound)
    nexts = tuple(draw(_next(width, widths, bounds, body, inputs)) for width in states)
    output = draw(st.none() | _recent(list(range(len(widths)))) | st.integers(0, len(widths) - 1))
    return replace(head, lines=tuple(body), nexts=nexts, output=output, seed=draw(st.integers(0, 3)))


@st.composite
def _next(
    draw: st.DrawFn,
    width: int,
    widths: list[int],
    bounds: list[float],
    body: list[Instruction],
    inputs: int | None,
) -> Next:
    """A value for a state of this width; if the program made none, a product that has it is added."""
    given = len(widths) - len(body)
    if draw(st.integers(0, 9)) == 9:
        # A delay: another state, or x, as it was at this step.
        as_they_were = [i for i in range(given) if widths[i] == width]
        return Next(draw(st.sampled_from(as_they_were)), None)
    fitting = [i for i in range(given, len(widths)) if widths[i] == width]
    if not fitting:
        body.append(Instruction("linear", (len(widths) - 1,), width))
        widths.append(width)
        bounds.append(bounds[-1] + 0.5)
        fitting = [len(widths) - 1]
    value = draw(_recent(fitting))
    return Next(value, round(0.5 / bounds[value], 4))


def _recent(values: list[int]) -> st.SearchStrategy[int]:
    """One of the last few values: lines then use each other, and few are made for nothing."""
    return st.sampled_from(values[:-4:-1])


def random_cells(
    *, noise: bool = True, autonomous: bool = True, lines: int = 14, detach: bool = True, rich: bool = False
) -> st.SearchStrategy[RandomCell]:
    """Cells that run a random program, in float64."""
    drawn = programs(noise=noise, autonomous=autonomous, lines=lines, detach=detach, rich=rich)
    return drawn.map(lambda program: RandomCell(program).double())
