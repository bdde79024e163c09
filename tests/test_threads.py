"""How many threads a training by the clock has, where other programs come and go: all that is simulated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elman.data import windows
from elman.models import LanguageModel
from elman.training import Threads, Training, pick_threads


class Machine:
    """A training of steps that take `seconds(threads, clock)`."""

    def __init__(self, seconds: Callable[[int, float], float], chosen: int, most: int = 2) -> None:
        self.now, self.seconds, self.clock = chosen, seconds, 0.0
        self.watch = Threads(most, chosen, self._set)
        self.spent = {1: 0.0, most: 0.0}

    def _set(self, threads: int) -> None:
        self.now = threads

    def train(self, until: float) -> None:
        while self.clock < until:
            took = self.seconds(self.now, self.clock)
            self.spent[self.now] += took
            self.clock += took
            self.watch.stepped(took)


def test_a_number_that_is_right_stays_and_trials_are_few() -> None:
    machine = Machine(lambda threads, clock: 0.05 if threads == 2 else 0.09, chosen=2)
    machine.train(600)
    assert machine.watch.chosen == 2
    assert 0 < machine.spent[1] < 0.01 * 600


@pytest.mark.parametrize("chosen", [1, 2])
def test_a_wrong_beginning_is_mended(chosen: int) -> None:
    """A neighbour was there, or was not, when the first number was picked."""
    right = 3 - chosen
    machine = Machine(lambda threads, clock: 0.05 if threads == right else 0.08, chosen)
    machine.train(600)
    assert machine.watch.chosen == right
    assert machine.spent[chosen] < 30


def test_a_neighbour_that_comes_is_noticed_at_once_and_its_going_later() -> None:
    def seconds(threads: int, clock: float) -> float:
        return 0.09 if threads == 1 else 1.0 if 100 <= clock < 300 else 0.05

    machine = Machine(seconds, chosen=2)
    machine.train(100)
    machine.train(110)
    assert machine.watch.chosen == 1
    machine.train(300)
    assert machine.watch.chosen == 1
    machine.train(390)
    assert machine.watch.chosen == 2


def test_a_trial_that_is_much_too_slow_ends() -> None:
    machine = Machine(lambda threads, clock: 1.0 if threads == 2 else 0.05, chosen=1)
    machine.train(200)
    assert machine.watch.chosen == 1
    assert machine.spent[2] <= 4 * 2.0  # two steps each


def test_one_thread_has_no_other() -> None:
    machine = Machine(lambda threads, clock: 0.05, chosen=1, most=1)
    machine.watch = Threads(1, 1, lambda threads: pytest.fail("there is nothing to try"))
    machine.train(100)


def test_training_tells_what_its_steps_take() -> None:
    told = list[float]()

    class Listening(Threads):
        def stepped(self, seconds: float) -> None:
            told.append(seconds)

    model, batches = LanguageModel(5, "gru", hidden=4), windows(torch.randint(5, (200,)), 5, 2)
    training = Training(model, batches, minutes=0.002)
    training.threads = Listening(2, 2)
    steps = len(list(training))
    assert len(told) == steps
    assert 0 < sum(told) < training.seconds + 0.1


def test_a_number_is_picked_and_nothing_is_changed() -> None:
    model, batches = LanguageModel(5, "gru", hidden=4), windows(torch.randint(5, (200,)), 5, 2)
    before, place, most = [p.clone() for p in model.parameters()], batches.position, torch.get_num_threads()
    assert pick_threads(model, batches, lambda model, batch, state: model.loss(*batch.values, state)) in (
        1,
        most,
    )
    assert (batches.position, torch.get_num_threads()) == (place, most)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
