"""The compiled part of the native engine: native/bind.cpp."""

def codes() -> dict[str, int]:
    """Name -> number of every operation."""

def instruction_sets() -> list[str]:
    """What this machine can run, the best first."""

def panels(name: str) -> tuple[int, int]:
    """Columns of a packed panel, in float32 and float64."""

def team() -> str:
    """Which threads are used: "openmp" or "own"."""

def poison(on: bool) -> None:
    """Fill scratch memory with NaN before every call (for tests)."""

class Loop:
    """A program that can run."""

    def __init__(
        self, isa: str, wide: bool, prepare: list[list[int]], prepare_numbers: list[float], ops: list[list[int]],
        numbers: list[float], buffers: list[list[int]], states: list[list[int]], scratch_bytes: int,
        prepared_bytes: int, work: int, widest: int, constants: int, sequences: int, emits: int, /,
    ) -> None: ...  # fmt: skip
    def run(
        self,
        steps: int,
        batch: int,
        sizes: list[int] | None,
        reverse: bool,
        pointers: list[int],
        threads: int,
    ) -> int:
        """0, or not 0 if an index inside the loop was out of range."""
