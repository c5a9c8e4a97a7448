"""Files of queries as people have them: encodings, lists, tables; works, or is refused in one line with the place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sami_nemo.errors import DataError
from sami_nemo.queries.loaders import load_queries
from tests.unit.test_queries import config, words

LINES = '{"query": "Wärum?"}\n{"query": "How?"}\n'
LIST = json.dumps([{"query": "Wärum?"}, {"query": "How?"}], indent=1, ensure_ascii=False)
TABLE = 'kind,query\r\nsum,"Wärum?"\r\n,How?\r\n'
BOM = "\ufeff"


def texts(file: Path, **changes: Any) -> list[str]:
    return [query.text for query in load_queries(config(file, **changes), words)[0]]


def refusal(file: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_queries(config(file, **changes), words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.jsonl", LINES),
        ("own.jsonl", BOM + LINES),
        ("own.jsonl", LINES.replace("\n", "\r\n")),
        ("own.jsonl", LINES.rstrip()),
        ("own.jsonl", "\n" + LINES.replace("\n", "\n\n")),
        ("own.json", LINES),
        ("own.json", LIST),
        ("own.json", BOM + LIST),
        ("own.json", "\n" + LIST),
        ("own.jsonl", LIST),
        ("own.json", json.dumps(json.loads(LIST))),
        ("own.csv", TABLE),
        ("own.csv", BOM + TABLE),
        ("own.csv", BOM + TABLE.replace("\r\n", "\n")),
        ("OWN.JSONL", LINES),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_what_holds_two_queries(name: str, content: str, packed: bool, tmp_path: Path) -> None:
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert texts(file) == ["Wärum?", "How?"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        # The line, whatever stands before it, and what to do.
        ("own.jsonl", LINES + '{"query": "fine"\n', ["own.jsonl, line 3", "not JSON"]),
        ("own.jsonl", "\n\n{'query': 'Why?'}\n", ["own.jsonl, line 3", "not JSON"]),
        ("own.json", '[\n{"query": "Why?"},\n{"query" "How?"}\n]', ["own.json, line 3, column 10", "not JSON"]),
        ("own.json", '[{"query": "Why?"},\n', ["own.json, line 2", "not JSON"]),
        ("own.json", '{\n "query": "Why?"\n}', ["own.json, line 1", "not JSON"]),
        ("own.csv", "query,kind\nWhy?,a\nHow?\n", ["own.csv, line 3", "2"]),
        ("own.csv", "query,kind\nWhy?,a,b\n", ["own.csv, line 2", "2"]),
        ("own.csv", 'query\n"Why?\n', ["own.csv, line 2", "not CSV"]),
        # Encodings.
        ("own.jsonl", LINES.encode("utf-16"), ["own.jsonl", "UTF-16", "UTF-8"]),
        ("own.csv", TABLE.encode("utf-16"), ["own.csv", "UTF-16"]),
        ("own.jsonl", ('{"query": "fine"}\n' + LINES).encode("latin-1"), ["own.jsonl, line 2", "not UTF-8", "LATIN1"]),
        ("own.json", LIST.encode("latin-1"), ["own.json, line 3", "not UTF-8"]),
        ("own.csv", TABLE.encode("latin-1"), ["own.csv, line 2", "not UTF-8"]),
        ("own.jsonl", gzip.compress(LINES.encode()), ["own.jsonl: is packed by gzip", ".gz"]),
        ("own.jsonl", f'{{"query": {"[" * 100_000}', ["own.jsonl, line 1", "not JSON"]),
        ("own.jsonl", "[" * 100_000, ["own.jsonl, line 1", "not JSON"]),
        ("own.jsonl", f'{{"query": {"1" * 5000}}}', ["own.jsonl, line 1", "not JSON"]),
        ("own.jsonl.gz", LINES, ["own.jsonl.gz, line 1", "cannot be read"]),
        ("own.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-20], ["own.jsonl.gz, line", "cannot be read"]),
        # No row holds a query: what was asked for, what there is, and what became of every row.
        ("own.jsonl", '{"question": "Why?", "id": 1}\n', ["data.field = query", "question, id"]),
        ("own.csv", "question;kind\nWhy?;a\n", ["data.field = query", "question;kind"]),
        ("own.json", '{"data": [{"query": "Why?"}]}', ["data.field = query", "they have data"]),
        ("own.json", '["Why?", "How?"]', ["2 no objects (first own.json:1, text)"]),
        ("own.jsonl", '"Why?"\n7\n', ["2 no objects (first own.jsonl:1, text)"]),
        ("own.jsonl", '["Why?"]\n["How?"]\n', ["2 no objects (first own.jsonl:1, a list)"]),
        ("own.jsonl", '\n{"query": 7}\n', ["1 with something else than text in query (first own.jsonl:2, a number)"]),
        ("own.jsonl", '{"query": ["Why?"]}\n', ["in query (first own.jsonl:1, a list)", "their fields are query"]),
        ("own.jsonl", '{"query": null}\n', ["(first own.jsonl:1, null)"]),
        ("own.jsonl", '{"query": {"text": "Why?"}}\n', ["(first own.jsonl:1, an object)"]),
        ("own.jsonl", '{"query": " "}\n', ["1 rows read, 0 kept", "1 empty (first own.jsonl:1)"]),
        ("own.jsonl", f'{{"query": "{"word " * 100}"}}\n', ["1 too long (first own.jsonl:1)"]),
        (
            "own.jsonl",
            '{"question": "Why?"}\n{"query": ""}\n3\n{"question": "How?"}\n',
            ["4 rows read, 0 kept", "2 without the field query (first own.jsonl:1)", "1 empty", "1 no objects (first own.jsonl:3",
             "fields are question, query"],
        ),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, content: str | bytes, parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal(file)
    assert all(part in line for part in parts), line


def test_fields_of_parquet(tmp_path: Path) -> None:
    file = tmp_path / "own.parquet"
    rows = [{"text": "Why?", "parts": ["a"], "inner": {"query": "How?"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert texts(file, field="text") == ["Why?"]
    assert "text, parts, inner" in refusal(file)
    assert "something else than text in parts (first own.parquet:1, a list)" in refusal(file, field="parts")
    assert "something else than text in inner (first own.parquet:1, an object)" in refusal(file, field="inner")


@pytest.mark.parametrize(
    ("format", "row", "part"),
    [
        ("hh_rlhf", {"chosen": 7}, "something else than text in chosen (first own.jsonl:1, a number)"),
        ("hh_rlhf", {"chosen": "Human: Why?"}, "data.format = hh_rlhf: no row"),
        ("tldr", {"info": {"post": None}}, "something else than text in post (first own.jsonl:1, null)"),
        ("tldr", {"info": {"article": "Text."}}, "data.format = tldr: no row"),
    ],
)
def test_rows_of_another_schema(format: str, row: dict[str, Any], part: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert part in refusal(file, format=format)


def test_a_directory_is_refused_with_a_glob_that_works(tmp_path: Path) -> None:
    inner = tmp_path / "data set" / "train"
    inner.mkdir(parents=True)
    for name in ("b.json", "a.json"):
        (inner / name).write_text(json.dumps([{"query": f"{name}?"}]))
    line = refusal(tmp_path / "data set")
    assert line.endswith(f"is a directory; give its files, for example {inner}/*.json")
    assert texts(inner / "*.json") == ["a.json?", "b.json?"]
