"""Texts as symbols: kept in files that are mapped, made again where they are spoilt, and used as a tensor is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elman import data
from elman.data import cache as caching
from elman.data import text as reading
from elman.data import tokenizer as tokenizing
from elman.data import tokens as numbers
from elman.data.tokens import width
from elman.errors import DataError, InputError
from elman.models import LanguageModel, estimate, evaluate
from tests.test_text import TEXT

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture(params=[5, 64, 2**20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(reading, "_BLOCK", request.param)
    return request.param


@pytest.fixture(scope="module", params=data.KINDS)
def tokenizer(request: pytest.FixtureRequest) -> data.Tokenizer:
    vocabulary = {"words": 12, "bpe": 300}.get(request.param)
    return data.Tokenizer.of(request.param, TEXT, vocabulary)


@given(st.data())
def test_symbols_do_not_depend_on_how_a_text_comes_in(tokenizer: data.Tokenizer, draw: st.DataObject) -> None:
    text = draw.draw(anything) + TEXT[:300] + draw.draw(anything) + "a  b c\n\nd"
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(text)), max_size=9)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = tokenizer.backend.encode(text, add_special_tokens=False).ids
    piece, tokenizing._PIECE = tokenizing._PIECE, draw.draw(st.integers(1, 50))
    try:
        found = np.concatenate([*tokenizer.arrays(pieces)])
    finally:
        tokenizing._PIECE = piece
    assert found.tolist() == expected


@pytest.mark.parametrize(("vocabulary", "size"), [(256, 1), (257, 2), (2**16, 2), (2**16 + 1, 4)])
def test_symbols_take_as_little_room_as_they_can(vocabulary: int, size: int) -> None:
    assert width(vocabulary).itemsize == size
    assert np.iinfo(width(vocabulary)).max >= vocabulary - 1


def test_a_file_of_symbols_that_is_cut_or_written_over_is_told(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = data.Tokenizer.characters(TEXT)
    text = data.open_text([path])
    small = data.tokenise(text, tokenizer, tmp_path)
    monkeypatch.setattr(numbers, "_SMALL", 0)
    large = data.tokenise(text, tokenizer, tmp_path)
    assert torch.equal(large[:], small[:])
    assert torch.equal(large[5:70], small[5:70])
    assert len(large[7:3]) == 0
    (kept,) = tmp_path.glob("*.tokens")
    kept.write_bytes(b"\xff" * len(TEXT))
    with pytest.raises(DataError, match="no symbol"):
        large[5:70]
    os.truncate(kept, 10)
    with pytest.raises(DataError, match="shorter than it was"):
        large[5:70]
    assert torch.equal(small[:], tokenizer.encode(TEXT))  # which is a copy


def test_kept_symbols_are_those_of_the_text(tokenizer: data.Tokenizer, path: Path, tmp_path: Path) -> None:
    text = data.open_text([path])
    tokens = data.tokenise(text, tokenizer, tmp_path / "cache")
    expected = tokenizer.encode(TEXT)
    assert len(tokens) == len(expected)
    assert tokens.vocabulary == tokenizer.size
    assert torch.equal(tokens[:], expected)
    assert torch.equal(tokens[5:70], expected[5:70])
    assert tokens[5:70].dtype == torch.int64
    assert tokens[-3:].tolist() == expected[-3:].tolist()
    memory = data.tokenise(text, tokenizer, None)
    assert torch.equal(memory[:], expected)
    assert memory.counts == tokens.counts
    unknown = 0 if tokenizer.unknown is None else int((expected == tokenizer.unknown).sum())
    assert tokens.counts == data.Counts(
        len(TEXT) - (1 if tokenizer.kind in ("characters", "bytes") else 3),
        len(TEXT.encode()) - (1 if tokenizer.kind in ("characters", "bytes") else 3),
        len(TEXT.split()),
        unknown,
    )


def test_what_is_counted_does_not_depend_on_the_blocks(
    block: int, tokenizer: data.Tokenizer, path: Path
) -> None:
    found = data.tokenise(data.open_text([path]), tokenizer, None)
    assert found.counts == data.tokenise(data.Text.of(TEXT), tokenizer, None).counts


def test_what_the_first_symbol_stands_for_may_go_on_beyond_the_first_file(path: Path, tmp_path: Path) -> None:
    parts = TEXT[:1], TEXT[1:]
    for name, part in zip("ab", parts, strict=True):
        (tmp_path / name).write_bytes(part.encode())
    files = data.open_text([tmp_path / "a", tmp_path / "b"])
    for kind in data.KINDS:
        tokenizer = data.Tokenizer.of(kind, TEXT)
        one = data.tokenise(files, tokenizer, None)
        assert one.counts == data.tokenise(data.open_text([path]), tokenizer, None).counts


@pytest.mark.parametrize("cached", [True, False])
def test_a_text_may_have_no_symbols(cached: bool, tmp_path: Path) -> None:
    """One of white space has no words."""
    tokenizer, folder = data.Tokenizer.words(TEXT, 12), tmp_path if cached else None
    for _ in range(2):  # the second time from the cache
        tokens = data.tokenise(data.Text.of("  "), tokenizer, folder)
        assert tokens[:].tolist() == []
        assert tokens.counts == data.Counts(2, 2, 0, 0)
        with pytest.raises(InputError, match="too short"):
            data.windows(tokens, 4, 1)


def test_a_symbol_that_only_begins_a_character_is_no_character() -> None:
    counts = data.tokenise(data.Text.of("€b"), data.Tokenizer.bytes(), None).counts
    assert counts == data.Counts(characters=2, bytes=3, words=1, unknown=0)


def test_a_text_is_worked_out_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"

    def symbols() -> tuple[data.Tokenizer, data.Tokens]:
        text = data.open_text([path])
        tokenizer = data.learn("words", text, 20, folder)
        return tokenizer, data.tokenise(text, tokenizer, folder)

    tokenizer, tokens = symbols()
    names = sorted(file.name for file in folder.iterdir())
    assert [Path(name).suffix for name in names].count(".tokens") == 1
    with monkeypatch.context() as patch:
        patch.setattr(data.Tokenizer, "arrays", None)
        patch.setattr(data.Tokenizer, "of", None)
        again, found = symbols()
    assert again.to_json() == tokenizer.to_json()
    assert torch.equal(found[:], tokens[:])
    assert found.counts == tokens.counts
    path.write_bytes(TEXT.encode() + b"!")  # another text has other symbols
    _, other = symbols()
    assert len(other) == len(tokens) + 1
    assert len(list(folder.iterdir())) == 2 * len(names)


@pytest.mark.parametrize("spoiled", ["short", "other symbols", "no counts", "other counts", "tokenizer"])
def test_a_spoiled_cache_is_made_again(spoiled: str, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    text = data.open_text([path])
    tokenizer = data.learn("bpe", text, 300, folder)
    data.tokenise(text, tokenizer, folder)
    files = {file.suffix: file for file in folder.iterdir()}
    suffix, content = {
        "short": (".tokens", b"abc"),
        "other symbols": (".tokens", b"\xff" * files[".tokens"].stat().st_size),
        "no counts": (".counts", b"{"),
        "other counts": (".counts", b'{"check": 3}'),
        "tokenizer": (".json", b"{}"),
    }[spoiled]
    files[suffix].write_bytes(content)
    again = data.learn("bpe", text, 300, folder)
    assert torch.equal(data.tokenise(text, again, folder)[:], tokenizer.encode(TEXT))
    assert files[suffix].read_bytes() != content


WORKER = """
import sys
from pathlib import Path
from elman import data

print("ready", flush=True)
input()
text = data.open_text([sys.argv[1]])
tokenizer = data.learn("bpe", text, 300, Path(sys.argv[2]))
print(data.tokenise(text, tokenizer, Path(sys.argv[2]))[:].sum().item())
"""


@pytest.mark.conformance
def test_two_processes_may_work_out_the_same_thing_at_once(path: Path, tmp_path: Path) -> None:
    path.write_text(TEXT * 100, "utf-8")
    folder, pipe = tmp_path / "cache", subprocess.PIPE
    command = [sys.executable, "-c", WORKER, str(path), str(folder)]
    workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    sums = [worker.communicate("go\n", timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    text = data.open_text([path])
    expected = data.tokenise(text, data.learn("bpe", text, 300, None), None)[:].sum().item()
    assert [int(found) for found in sums] == [expected, expected]
    assert sorted(file.suffix for file in folder.iterdir()) == [".counts", ".json", ".tokens"]


def test_nothing_half_done_is_kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 100)
    path.write_bytes(TEXT.encode() * 3)
    folder = tmp_path / "cache"
    text, tokenizer = data.open_text([path]), data.Tokenizer.characters(TEXT)
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    with pytest.raises(DataError, match="changed"):
        data.tokenise(text, tokenizer, folder)
    assert not list(folder.iterdir())


def test_only_a_large_text_needs_a_cache_that_can_be_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    text, folder = data.open_text([path]), tmp_path / "file" / "cache"
    tokenizer = data.learn("bytes", text, None, folder)
    assert bytes(data.tokenise(text, tokenizer, folder)[:].tolist()) == TEXT.encode()
    monkeypatch.setattr(caching, "_SMALL", 1)
    with pytest.raises(DataError, match="--cache"):
        data.tokenise(text, tokenizer, folder)


def test_a_large_file_of_symbols_is_read_slice_by_slice(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elman.data.tokens._SMALL", 0)
    tokens = data.tokenise(data.open_text([path]), data.Tokenizer.bytes(), tmp_path)
    assert b"".join(bytes(tokens[k : k + 7].tolist()) for k in range(0, len(tokens), 7)) == TEXT.encode()


# What the process may have of its own (files do not count): 40 MiB more than a small run needs, for 64 MiB of
# text. As a string it would be 64, as a tensor 512.
FRUGAL = """
import resource, sys
from pathlib import Path
from elman import data, training
from elman.models import LanguageModel, estimate, reach

def train(kind, path):
    text = data.open_text([path])
    tokenizer = data.learn(kind, text, None, Path(sys.argv[1]))
    tokens = data.tokenise(text, tokenizer, Path(sys.argv[1]))
    model = LanguageModel(tokenizer.size, "gru", hidden=8, embedding=4)
    for step in training.Training(model, data.windows(tokens, 16, 4), steps=5): pass
    estimate(model, tokens)
    reach(model, tokens, back=4)
    print(kind, len(tokens), step.step)

for kind in ("bytes", "characters"): train(kind, sys.argv[2])
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
limit = used * 1024 + 40 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
for kind in ("bytes", "characters"): train(kind, sys.argv[3])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has of its own is limited by Linux only")
@pytest.mark.conformance
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_text(TEXT, "utf-8")
    raw = TEXT.encode() * (2**20 // len(TEXT.encode()))
    with large.open("wb") as file:
        file.writelines([raw] * 64)
    command = [sys.executable, "-c", FRUGAL, str(tmp_path / "cache"), str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert sizes[2:] == [64 * len(raw), 64 * len(raw.decode())]


# --- use --------------------------------------------------------------------------------------------------------------


def test_windows_and_figures_are_those_of_a_tensor(path: Path, tmp_path: Path) -> None:
    tokenizer = data.Tokenizer.characters(TEXT)
    mapped = data.tokenise(data.open_text([path]), tokenizer, tmp_path / "cache")
    plain = tokenizer.encode(TEXT)
    ours, theirs = data.windows(mapped, 9, 4, seed=1), data.windows(plain, 9, 4, seed=1)
    for _ in range(120):
        one, two = next(ours), next(theirs)
        assert all(torch.equal(a, b) for a, b in zip(one.values, two.values, strict=True))
    model = LanguageModel(tokenizer.size, "gru", hidden=8, embedding=4)
    figures = [
        evaluate(model, tokens, window=window).nats
        for tokens, window in ((plain, 1000), (mapped, 1000), (mapped, 7), (mapped, 10**6))
    ]
    assert figures[0] == figures[1]
    assert figures == pytest.approx([figures[0]] * 4, rel=1e-5)
    assert estimate(model, mapped) == estimate(model, plain)


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert caching.cache_folder() == Path("somewhere/elman")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert caching.cache_folder() == Path.home() / ".cache" / "elman"
