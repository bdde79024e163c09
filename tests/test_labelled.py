"""Examples with labels: the same from every kind of file, what cannot be read told with its line, and how they are
parted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from elman.data.labelled import read_labelled, read_sequences, stratified
from elman.errors import DataError


def test_the_same_examples_from_every_kind_of_file(tmp_path: Path) -> None:
    pairs = [("Abel", "French"), ("Doğan, A", "Turkish"), ("Öz", "Turkish")]
    for kind in ("lines", "files"):
        (tmp_path / kind).mkdir()
    for label in ("French", "Turkish"):
        mine = [text for text, other in pairs if other == label]
        (tmp_path / "lines" / f"{label}.txt").write_text("".join(f"{text}\r\n\n" for text in mine), "utf-8")
        (tmp_path / "files" / label).mkdir()
        for k, text in enumerate(mine):
            (tmp_path / "files" / label / f"{k}.txt").write_text(f"{text}\n", "utf-8")
    rows = "".join(f'"{text}",{label}\n' for text, label in pairs)
    (tmp_path / "a.csv").write_text("\ufefftext,label\n" + rows, "utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n\n" for a, b in pairs))
    for name in ("lines", "files", "a.csv", "a.jsonl"):
        found = read_labelled([tmp_path / name])
        assert list(zip(found.x, found.y, strict=True)) == pairs
    assert (
        len({read_labelled([tmp_path / name]).digest for name in ("lines", "files", "a.csv", "a.jsonl")}) == 1
    )


def test_numbers_from_every_kind_of_file(tmp_path: Path) -> None:
    series = {"one": [[1.0, 2.5], [3.0, 4.0]], "two": [[5.0, 6.0]]}
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": v, "label": k}) + "\n" for k, v in series.items())
    )
    (tmp_path / "a.csv").write_text("id,label,x,y\n7,one,1,2.5\n8,two,5,6\n7,one,3,4\n")
    for k, v in series.items():
        (tmp_path / "d" / k).mkdir(parents=True)
        (tmp_path / "d" / k / "0.csv").write_text("x,y\n" + "".join(f"{a},{b}\n" for a, b in v))
    for name in ("a.jsonl", "a.csv", "d"):
        found = read_labelled([tmp_path / name])
        assert found.y == ["one", "two"]
        assert [x.tolist() for x in found.x] == list(series.values())
    (tmp_path / "p.txt").write_text("[[1, 2], [3, 4]]\n\n[5, 6]\n")
    found = list(read_sequences(tmp_path / "p.txt", numbers=True))
    assert [x if x is None else x.tolist() for x in found] == [[[1, 2], [3, 4]], None, [[5], [6]]]


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.csv", b"name,label\nx,y\n", "a.csv:1", "no column 'text'"),
        ("a.csv", b"text,kind\nx,y\n", "a.csv:1", "no column 'label'"),
        ("a.csv", b"text,label\nx,y\nx\n", "a.csv:3", "fewer fields"),
        ("a.csv", b"text,label\nx,\n", "a.csv:2", "no label"),
        ("a.csv", b"text,label\n,y\n", "a.csv:2", "is empty"),
        ("a.csv", b"text,label\nx,y\n\xff,y\n", "a.csv:3", "not UTF-8"),
        ("a.csv", b"text,label\n" + b"x" * 1_000_000 + b",y\n", "a.csv:2", "longer than is read"),
        ("a.csv", b"id,label,v\n1,a,2\n1,b,3\n", "a.csv:3", "different labels"),
        ("a.csv", b"id,label,v\n1,a,2\n1,a,nan\n", "a.csv:3", "not what the others are"),
        ("a.csv", b"text,label\n", "a.csv", "no examples"),
        ("a.csv", b"", "a.csv", "is empty"),
        ("a.jsonl", b'{"text": "x", "label": "y"}\n{"text": "x"}\n', "a.jsonl:2", "no example: label"),
        ("a.jsonl", b'{"text": [1, [2]], "label": "y"}\n', "a.jsonl:1", "no sequence"),
        ("a.jsonl", b'{"text": [NaN], "label": "y"}\n', "a.jsonl:1", "no sequence"),
        ("a.jsonl", b'{"text": [1, 1%s], "label": "y"}\n' % (b"0" * 400), "a.jsonl:1", "no sequence"),
        ("a.jsonl", b'{"text": [1, 1e39], "label": "y"}\n', "a.jsonl:1", "no sequence"),
        ("a.csv", b"id,label,v\n1,a,2\n1,a,1e39\n", "a.csv:3", "not what the others are"),
        ("a.csv", b"id,label,v\n1,a,2\n1,a,1_0\n", "a.csv:3", "not what the others are"),
        ("a.jsonl", b"nothing\n", "a.jsonl:1", "no example"),
        ("a.jsonl", b'{"text": "x", "label": "y"}\n{"text": [1], "label": "y"}\n', "a.jsonl:2", "another kind"),
        ("a.jsonl", b'{"text": "' + b"x" * 1_000_000 + b'", "label": "y"}\n', "a.jsonl:1", "longer than is read"),
        ("a.txt", b"x y\n", "a.txt", "no examples with labels"),
        ("d/a.txt", b"", "d/a.txt", "is empty"),
        ("d/a.txt", b"good\n\xc3(\n", "d/a.txt:2", "not UTF-8"),
        ("d/a.txt", b"x\n" + b"x" * 1_000_000, "d/a.txt:2", "longer than is read"),
        ("d/a/x.txt", b"\n \n", "d/a/x.txt", "is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_file_and_line(
    name: str, content: bytes, where: str, what: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read_labelled([tmp_path / name.split("/")[0]])
    assert str(caught.value.where) == str(tmp_path / where)
    assert caught.value.mend


def test_a_split_has_its_share_of_every_class_and_hangs_on_the_seed() -> None:
    y = [0] * 100 + [1] * 40 + [2] * 10 + [3]
    parts = stratified(y, (0.8, 0.1, 0.1), seed=3)
    assert sorted(i for part in parts for i in part) == list(range(len(y)))
    assert [[sum(y[i] == k for i in part) for k in range(4)] for part in parts] == [
        [80, 32, 8, 1], [10, 4, 1, 0], [10, 4, 1, 0]
    ]  # fmt: skip
    assert parts == stratified(y, (0.8, 0.1, 0.1), seed=3)
    assert parts != stratified(y, (0.8, 0.1, 0.1), seed=4)


def test_channels_are_known_by_their_names(tmp_path: Path) -> None:
    rows = ["id,label,u,v", *(f"{k},{k % 2},{k + t},{-t}" for k in range(4) for t in range(3))]
    turned = [",".join((v, u, one, label)) for one, label, u, v in (row.split(",") for row in rows)]
    for name, lines in {
        "a": rows,
        "b": turned,
        "c": ["id,label,u,w", "9,0,1,2"],
        "d": ["id,u,u", "9,1,2"],
    }.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    a, b, c, d = (tmp_path / f"{name}.csv" for name in "abcd")
    both = read_labelled([a, b])
    assert all(map(torch.equal, both.x[:4], both.x[4:]))
    with pytest.raises(DataError, match="columns of numbers are others") as told:
        read_labelled([a, c])
    assert "c.csv:1" in str(told.value)
    with pytest.raises(DataError, match="two columns have one name"):
        list(read_sequences(d, numbers=True))
    for kind, order in (("x", slice(None)), ("y", slice(None, None, -1))):
        (tmp_path / "folder" / kind).mkdir(parents=True)
        table = "\n".join(",".join(line[order]) for line in (["u", "v"], ["1", "2"], ["3", "4"]))
        (tmp_path / "folder" / kind / "1.csv").write_text(table)
    assert torch.equal(*read_labelled([tmp_path / "folder"]).x)


def test_a_text_that_stands_in_two_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="two columns have one name"):
        list(read_sequences(tmp_path / "a.csv", numbers=False))
