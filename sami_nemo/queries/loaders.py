"""Queries from data sets, on the `datasets` library.

Every row is either kept or counted under a reason; `LoadReport` adds up to the rows read.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sami_nemo.config.schema import DataConfig
from sami_nemo.errors import DataError
from sami_nemo.records import Query

REPOSITORY = Path(__file__).parents[2]
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
# Half a character, as JSON can spell it ("\\ud83d"): neither tokenizers nor files take it.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Where the hub keeps a Parquet copy of data sets that are published with a script, which `datasets` no longer runs.
PARQUET_COPY = "refs/convert/parquet"
FORMATS = (".jsonl", ".jsonl.gz", ".parquet")
# The oldest data sets are named without an owner.
HUB_DATA_SET = re.compile(r"([A-Za-z0-9][\w.-]*/)?[\w.-]+")

Row = tuple[str, int, dict[str, Any]]
"""Source (file, or subset of a hub data set), row number from 1, and fields."""


@dataclass
class LoadReport:
    """What became of the rows."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason: malformed, empty, special_token, over_long, duplicate."""

    def to_json(self) -> dict[str, Any]:
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped)}


def load_queries(
    data: DataConfig, count_tokens: Callable[[str], int], special_tokens: Collection[str] = ()
) -> tuple[list[Query], LoadReport]:
    """Read, clean and de-duplicate queries, in the order of the source.

    Args:
        count_tokens: length of a text in the model's tokens.
        special_tokens: texts that would end or restart a prompt; a query that spells one is dropped.

    Raises:
        DataError: a source that is missing or cannot be reached, or a file that cannot be parsed, with its line.
    """
    extract = {"hh_rlhf": first_human_turn, "tldr": post, "queries": lambda row: text_field(row, data.field)}[
        data.format
    ]
    report = LoadReport()
    queries: list[Query] = []
    seen: set[str] = set()
    fields: list[str] = []
    for source, number, row in read_rows(data):
        report.read += 1
        fields = list(row) or fields
        text = extract(row)
        reason = _reason_to_drop(text, seen, data.max_query_tokens, count_tokens)
        if not reason and any(token in str(text) for token in special_tokens):
            reason = "special_token"
        if reason:
            report.dropped[reason] += 1
            continue
        assert text is not None
        seen.add(_normalised(text))
        queries.append(Query(id=f"{source}:{number}", text=text.strip(), source=source))
        report.kept += 1
    if report.dropped["malformed"] == report.read:
        raise _no_query(data, fields)
    return queries, report


def _no_query(data: DataConfig, fields: list[str]) -> DataError:
    """The error for a source without a row of the schema; `fields` are those of a row, if it has any."""
    if not fields:
        return DataError("data.source", data.source, "holds no rows")
    found = f"no row of {data.source} has this; they have {', '.join(fields)}"
    if data.format == "queries":
        return DataError("data.field", data.field, f"{found}; give the field with the query's text")
    return DataError("data.format", data.format, f"{found}; data.format=queries takes the text of data.field")


def _reason_to_drop(
    text: str | None, seen: set[str], max_tokens: int, count_tokens: Callable[[str], int]
) -> str | None:
    if text is None or LONE_SURROGATE.search(text):
        return "malformed"
    if not text.strip():
        return "empty"
    if _normalised(text) in seen:
        return "duplicate"
    if count_tokens(text.strip()) > max_tokens:
        return "over_long"
    return None


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def first_human_turn(row: dict[str, Any]) -> str | None:
    """The first query of an HH-RLHF conversation; later turns and preferences are discarded (paper, section 4)."""
    conversation = row.get("chosen")
    if not isinstance(conversation, str) or not conversation.startswith(HUMAN) or ASSISTANT not in conversation:
        return None
    turn = conversation.removeprefix(HUMAN)
    return turn.split(ASSISTANT, 1)[0].split(HUMAN, 1)[0]


def post(row: dict[str, Any]) -> str | None:
    """The post of a TL;DR comparison: the hub's schema, or a plain `post` field."""
    info = row.get("info")
    return text_field(info if isinstance(info, dict) else row, "post")


def text_field(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    return value if isinstance(value, str) else None


def read_rows(data: DataConfig) -> Iterator[Row]:
    """The rows of files (JSONL, .gz of it, Parquet), or of a hub data set."""
    files = local_files(data.source)
    if files:
        # Files of one name in several directories stay apart; files of one directory go by their names alone.
        common = os.path.commonpath([file.parent for file in files])
        for file in files:
            yield from _numbered(file.relative_to(common).as_posix(), _file_rows(file))
    else:
        yield from _hub_rows(data)


def local_files(source: str) -> list[Path]:
    """Files that `source` names, as a path or a glob, from here or from the repository; none of a hub data set.

    Raises:
        DataError: it is neither files that can be read nor a hub name.
    """
    found = paths_of(source)
    if not found and (source.endswith(FORMATS) or not HUB_DATA_SET.fullmatch(source)):
        raise DataError("data.source", source, "no such file")
    files = [path for path in found if path.is_file()]
    if found and not files:
        raise DataError("data.source", source, f"is a directory; give its files, for example {source}/*.jsonl")
    for file in files:
        if not file.name.endswith(FORMATS):
            raise DataError("data.source", file, f"must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    return files


def paths_of(source: str) -> list[Path]:
    """Whatever `source` names here, as a path or a glob, from the working directory or else from the repository."""
    for root in (Path(), REPOSITORY):
        # A name may have brackets in it. Path.glob takes no absolute pattern.
        found = [source] if os.path.lexists(root / source) else glob.glob(source, root_dir=root)  # noqa: PTH207
        if found:
            return sorted(root / file for file in found)
    return []


def _file_rows(file: Path) -> Iterable[Any]:
    if file.name.endswith(".parquet"):
        return _parquet_rows(file)
    return _json_lines(file)


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError("data.source", file, f"is not Parquet: {error}") from None


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    # datasets' own JSON reader names no line when a file is broken, which is what a user needs. Lines are read as bytes
    # and decoded one by one: text files decode whole blocks, and would name a line before the broken one.
    done = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for line in lines:
                text = line.decode("utf-8-sig")
                row = json.loads(text) if text.strip() else {}
                done += 1
                yield row if isinstance(row, dict) else {}
    except json.JSONDecodeError as error:
        place = f"{file}, line {done + 1}, column {error.colno}"
        raise DataError("data.source", place, f"is not JSON ({error.msg}); correct or remove the line") from None
    except (UnicodeDecodeError, OSError, zlib.error, EOFError) as error:
        raise DataError("data.source", f"{file}, line {done + 1}", f"cannot be read: {error}") from None


def _hub_rows(data: DataConfig) -> Iterator[Row]:
    # HH-RLHF keeps its subsets in directories, other data sets in configurations.
    options: list[tuple[str, dict[str, Any]]] = [("", {})]
    if data.subsets:
        key = "data_dir" if data.format == "hh_rlhf" else "name"
        options = [(subset, {key: subset}) for subset in data.subsets]
    for subset, option in options:
        try:
            rows = _load_split(data.source, data.split, option)
        except Exception as error:  # whatever the hub, the network or the cache raise, the user needs the same line
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = (
                f"is no local file and cannot be loaded from the hub ({reason}); check name, subset and network, log in "
                "with `hf auth login` if it is gated, or download it and give its JSONL or Parquet files"
            )
            raise DataError("data.source", data.source, remedy) from None
        yield from _numbered(subset or data.source, rows)


def _load_split(source: str, split: str, option: dict[str, Any]) -> Iterable[Any]:
    import datasets

    try:
        return datasets.load_dataset(source, split=split, **option)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    # The copy has a directory for each configuration.
    directory = option.get("name") or option.get("data_dir")
    return datasets.load_dataset(source, split=split, data_dir=directory, revision=PARQUET_COPY)


def _numbered(source: str, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        yield source, number, row
