"""Queries from files and data sets.

Every row is either kept or counted under a reason; `LoadReport` adds up to the rows read.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sami_nemo.config.schema import DataConfig
from sami_nemo.errors import DataError
from sami_nemo.queries.files import FORMATS, ending_of, file_rows
from sami_nemo.queries.hub_data import data_files
from sami_nemo.records import Query

REPOSITORY = Path(__file__).parents[2]
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
# Half a character, as JSON can spell it ("\\ud83d"): neither tokenizers nor files take it.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# The oldest data sets are named without an owner.
HUB_DATA_SET = re.compile(r"([A-Za-z0-9][\w.-]*/)?[\w.-]+")
# Of a row, in a message's one line.
SHOWN_FIELDS = 12

Row = tuple[str, int, Any]
"""Source (file, or subset of a hub data set), number from 1 (of a file: its line), and an object, if the file is sound."""

REASONS = {
    "no_object": "no objects",
    "no_field": "without the field {wanted}",
    "no_text": "with something else than text in {wanted}",
    "half_character": "with half a character",
    "empty": "empty",
    "duplicate": "the same as an earlier one",
    "over_long": "too long",
    "special_token": "that spell a special token",
}
"""Why a row is dropped, and how that is told."""


@dataclass
class LoadReport:
    """What became of the rows."""

    wanted: str
    """The field that holds the query."""
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason, see REASONS."""
    first: dict[str, str] = field(default_factory=dict)
    """The first row that was dropped for each reason, and what it held if that was no text."""
    fields: dict[str, None] = field(default_factory=dict)
    """Of all rows, in the order in which they came."""

    def drop(self, reason: str, place: str) -> None:
        self.dropped[reason] += 1
        self.first.setdefault(reason, place)

    def words(self) -> str:
        """What became of the rows, for people."""
        told = {reason: REASONS[reason].format(wanted=self.wanted) for reason in self.dropped}
        parts = [f"{count} {told[reason]} (first {self.first[reason]})" for reason, count in self.dropped.items()]
        fields = f"; their fields are {self.shown_fields()}" if {"no_field", "no_text"} & self.dropped.keys() else ""
        return f"{self.read} rows read, {self.kept} kept, dropped: {', '.join(parts) or 'none'}{fields}"

    def shown_fields(self) -> str:
        names = list(self.fields)
        return ", ".join(names[:SHOWN_FIELDS]) + (" …" if len(names) > SHOWN_FIELDS else "")

    def to_json(self) -> dict[str, Any]:
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped)}


def load_queries(
    data: DataConfig,
    count_tokens: Callable[[str], int],
    special_tokens: Collection[str] = (),
    *,
    most: int | None = None,
    cache: Path | None = None,
) -> tuple[list[Query], LoadReport]:
    """Read, clean and de-duplicate queries, in the order of the source.

    Args:
        count_tokens: length of a text in the model's tokens.
        special_tokens: texts that would end or restart a prompt; a query that spells one is dropped.
        most: rows to read, to see whether they have the field; None: all.
        cache: of the hub; by default where the environment says.

    Raises:
        DataError: a source that is missing, cannot be reached or holds no query, or a file that cannot be parsed, with
            its line.
    """
    wanted, extract = SCHEMAS[data.format]
    report = LoadReport(wanted or data.field)
    queries: list[Query] = []
    seen: set[str] = set()
    for source, number, row in islice(read_rows(data, cache), most):
        report.read += 1
        place = f"{source}:{number}"
        if not isinstance(row, dict):
            report.drop("no_object", f"{place}, {type_name(row)}")
            continue
        report.fields.update(dict.fromkeys(row))
        try:
            text = extract(row, report.wanted)
        except LookupError:
            report.drop("no_field", place)
            continue
        reason = _reason_to_drop(text, seen, data.max_query_tokens, count_tokens)
        if not reason and any(token in text for token in special_tokens):
            reason = "special_token"
        if reason:
            report.drop(reason, f"{place}, {type_name(text)}" if reason == "no_text" else place)
            continue
        seen.add(_normalised(text))
        queries.append(Query(id=place, text=text.strip(), source=source))
        report.kept += 1
    # Rows behind the first ones may hold queries, if they have the field at all.
    if not queries and (most is None or report.dropped["no_field"] == report.read):
        raise _no_query(data, report)
    return queries, report


def type_name(value: Any) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    for kinds, name in ((bool, "true or false"), (int | float, "a number"), (list, "a list"), (dict, "an object")):
        if isinstance(value, kinds):
            return name
    return "text" if isinstance(value, str) else type(value).__name__


def _no_query(data: DataConfig, report: LoadReport) -> DataError:
    """The error for a source that holds no query."""
    if not report.read:
        return DataError("data.source", data.source, "holds no rows")
    if report.dropped["no_field"] < report.read:
        return DataError("data.source", data.source, f"holds no usable query: {report.words()}")
    found = f"no row of {data.source} has this; they have {report.shown_fields()}"
    if data.format == "queries":
        return DataError("data.field", data.field, f"{found}; give the field with the query's text")
    return DataError("data.format", data.format, f"{found}; data.format=queries takes the text of data.field")


def _reason_to_drop(text: Any, seen: set[str], max_tokens: int, count_tokens: Callable[[str], int]) -> str | None:
    if not isinstance(text, str):
        return "no_text"
    if LONE_SURROGATE.search(text):
        return "half_character"
    if not text.strip():
        return "empty"
    if _normalised(text) in seen:
        return "duplicate"
    if count_tokens(text.strip()) > max_tokens:
        return "over_long"
    return None


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def first_human_turn(row: dict[str, Any], name: str = "chosen") -> Any:
    """The first query of an HH-RLHF conversation; later turns and preferences are discarded (paper, section 4).

    Raises:
        LookupError: the field `name` is not there, or holds no conversation.
    """
    conversation = row[name]
    if not isinstance(conversation, str):
        return conversation
    if not conversation.startswith(HUMAN) or ASSISTANT not in conversation:
        raise LookupError("no conversation")
    turn = conversation.removeprefix(HUMAN)
    return turn.split(ASSISTANT, 1)[0].split(HUMAN, 1)[0]


def post(row: dict[str, Any], name: str = "post") -> Any:
    """The post of a TL;DR comparison: the hub's schema, or a plain field.

    Raises:
        LookupError: there is none.
    """
    info = row.get("info")
    return (info if isinstance(info, dict) else row)[name]


def own_field(row: dict[str, Any], name: str) -> Any:
    """The field `name`.

    Raises:
        LookupError: it is not there.
    """
    return row[name]


SCHEMAS: dict[str, tuple[str | None, Callable[[dict[str, Any], str], Any]]] = {
    "hh_rlhf": ("chosen", first_human_turn),
    "tldr": ("post", post),
    "queries": (None, own_field),
}
"""By data.format: the field that holds the query, if not data.field, and what takes it from there."""


def read_rows(data: DataConfig, cache: Path | None = None) -> Iterator[Row]:
    """The rows of files, or of a hub data set; see files.py and hub_data.py.

    Raises:
        DataError: they are not there, or cannot be read.
    """
    files = local_files(data.source)
    if files:
        # Files of one name in several directories stay apart; files of one directory go by their names alone.
        common = os.path.commonpath([file.parent for file in files])
        for file in files:
            source = file.relative_to(common).as_posix()
            yield from ((source, number, row) for number, row in file_rows(file))
        return
    for subset in data_files(data, download=True, cache=cache):
        rows = (row for file in subset.files for _, row in file_rows(file))
        yield from ((subset.label, number, row) for number, row in enumerate(rows, start=1))


def local_files(source: str) -> list[Path]:
    """Files that `source` names, as a path or a glob, from here or from the repository; none of a hub data set.

    Raises:
        DataError: it is neither files that can be read nor a hub name.
    """
    found = paths_of(source)
    if not found and (ending_of(source) or not HUB_DATA_SET.fullmatch(source)):
        raise DataError("data.source", source, "no such file")
    files = [path for path in found if path.is_file()]
    if found and not files:
        # Not read as they are: the directories of data sets hold several splits.
        raise DataError("data.source", source, f"is a directory; give its files, for example {_example(found[0])}")
    for file in files:
        if not ending_of(file.name):
            raise DataError("data.source", file, f"must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    return files


def _example(directory: Path) -> str:
    """A glob of the data files of a directory, which may be below it."""
    paths = [*sorted(directory.glob("*")), *sorted(directory.glob("*/*"))]
    endings = ((path.parent, ending) for path in paths if (ending := ending_of(path.name)))
    place, ending = next(endings, (directory, FORMATS[0]))
    return f"{place}/*{ending}"


def paths_of(source: str) -> list[Path]:
    """Whatever `source` names here, as a path or a glob, from the working directory or else from the repository."""
    for root in (Path(), REPOSITORY):
        # A name may have brackets in it. Path.glob takes no absolute pattern.
        found = [source] if os.path.lexists(root / source) else glob.glob(source, root_dir=root)  # noqa: PTH207
        if found:
            return sorted(root / file for file in found)
    return []
