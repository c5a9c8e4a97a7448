"""JSON and tables of a reply, rewritten as nested lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

FENCED_JSON = re.compile(r"^[ \t]*```(?:json\w*)?[ \t]*\n\s*(?P<json>[\[{].*?)\n?[ \t]*```", re.DOTALL | re.MULTILINE | re.I)
BARE_JSON = re.compile(r"^[ \t]*(?P<json>\{.*\}|\[\s*\{.*\}\s*\])[ \t]*$", re.DOTALL | re.MULTILINE)
JSON_BEGINS = re.compile(r"\s*(?:\{\s*[\"'}]|\[\s*\{|```json)")
TABLE_ROW = re.compile(r"\s*\|.*\|\s*")
TABLE_RULE = re.compile(r"\s*\|(?:\s*:?-+:?\s*\|)+\s*")
INDENT = "    "
# Of a value that names its object, such as {"name": "not kind", …}, rather than being a statement.
MOST_WORDS_OF_NAME = 5


def as_list(text: str) -> str:
    """Raises ValueError if the text begins like JSON and is damaged."""
    match = FENCED_JSON.search(text) or BARE_JSON.search(text)
    if match is not None:
        # Pairs, because a dictionary would hide a key that stands twice.
        value = json.loads(match["json"], object_pairs_hook=_Pairs)
        return "\n".join([text[: match.start()], "", *_json_lines(value, ""), "", text[match.end() :]])
    if JSON_BEGINS.match(text):
        raise ValueError("its JSON is damaged")
    return "\n".join(_without_tables(text.splitlines()))


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object."""


def _json_lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, _Pairs):
        texts = [item for _, item in value if isinstance(item, str)]
        # An object with a statement may hold names beside it; of two short texts nothing tells which is the name.
        labels = [item for item in texts if len(item.split()) <= MOST_WORDS_OF_NAME and len(texts) + len(value) > 2]
        labels = labels if len(labels) < len(value) else []
        if labels:
            yield f"{indent}- **{', '.join(labels)}**:"
            indent += INDENT
        for key, item in value:
            if isinstance(item, str) and item in labels:
                continue
            if isinstance(item, str | int | float | None):
                yield f"{indent}- **{key}**: {' '.join(str(item or '').split())}"
            else:
                yield f"{indent}- **{key}**:"
                yield from _json_lines(item, indent + INDENT)
    elif isinstance(value, list):
        for number, item in enumerate(value, start=1):
            if isinstance(item, str):
                yield f"{indent}{number}. {' '.join(item.split())}"
            else:
                yield from _json_lines(item, indent)


def _without_tables(lines: list[str]) -> Iterator[str]:
    header: list[str] | None = None
    for number, line in enumerate(lines):
        if not TABLE_ROW.fullmatch(line):
            header = None
            yield line
        elif header is None:
            header = _cells(line) if number + 1 < len(lines) and TABLE_RULE.fullmatch(lines[number + 1]) else []
            if not header:
                yield from _row(_cells(line), header)
        elif not TABLE_RULE.fullmatch(line):
            yield from _row(_cells(line), header)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _row(cells: list[str], header: list[str]) -> Iterator[str]:
    """A line for the cells that name the row, one beneath for each other cell, labelled by its column."""
    titles = [*header, *[""] * len(cells)]
    columns = [(title, cell) for title, cell in zip(titles, cells, strict=False) if not re.fullmatch(r"[\d.#\s]*", cell)]
    names = [cell.strip("* ") for title, cell in columns if len(cell.split()) <= MOST_WORDS_OF_NAME]
    texts = [(title, cell) for title, cell in columns if len(cell.split()) > MOST_WORDS_OF_NAME]
    if len(texts) == 1:
        yield f"- **{', '.join(names)}**: {texts[0][1]}" if names else f"- {texts[0][1]}"
        return
    yield f"- **{', '.join(names)}**:" if names else ""
    for title, cell in texts:
        yield f"{INDENT if names else ''}- **{title.strip('* ')}**: {cell}"
