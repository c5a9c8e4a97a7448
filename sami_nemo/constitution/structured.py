"""A reply as lines of one kind: JSON, XML and tables rewritten as nested lists, signs of other alphabets as plain ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

END_TOKENS = re.compile(r"<\|[^|>\n]{1,30}\|>|</?s>|</?(?:end_of_turn|start_of_turn|eos|bos|answer|response|output)>")
EMPHASIS_TAGS = re.compile(r"</?(?:b|strong|em|i|u)>", re.IGNORECASE)
LINE_BREAKS = re.compile(r"<br\s*/?>", re.IGNORECASE)
KEY_CAP = re.compile("(\\d)\ufe0f?\u20e3")
CIRCLED = {ord(circled): f"{number}." for number, circled in enumerate("①②③④⑤⑥⑦⑧⑨", start=1)}

FENCED_JSON = re.compile(
    r"^[ \t]*```(?:json\w*)?[ \t]*\n\s*(?P<json>[\[{].*?)\n?[ \t]*```", re.DOTALL | re.MULTILINE | re.I
)
BARE_JSON = re.compile(r"^[ \t]*(?P<json>\{.*\}|\[\s*\{.*\}\s*\])[ \t]*$", re.DOTALL | re.MULTILINE)
JSON_BEGINS = re.compile(r"\s*(?:\{\s*[\"'}]|\[\s*\{|```json)")
TABLE_ROW = re.compile(r"\s*\|.*\|\s*")
TABLE_RULE = re.compile(r"\s*\|(?:\s*:?-+:?\s*\|)+\s*")
XML_ELEMENT = re.compile(r"<(?P<tag>[a-z][\w-]*)(?:\s[^<>]*)?>.*?</(?P=tag)>", re.DOTALL | re.IGNORECASE)
XML_TAG = re.compile(
    r"<(?P<close>/?)(?P<tag>[a-z][\w-]*)(?P<attributes>(?:\s+\w+=[\"'][^\"'<>]*[\"'])*)\s*>", re.IGNORECASE
)
CHECK_BOX = re.compile(r"^(\s*(?:[-*+]|\d{1,2}[.)])\s+)\[[ xX✓✔✗✘]\]\s+", re.MULTILINE)
LATEX = (
    (re.compile(r"\\(?:begin|end)\{[^}]*\}"), ""),
    (re.compile(r"\\item\b"), "-"),
    (re.compile(r"\\(?:textbf|emph|textit)\{([^{}]*)\}"), r"**\1**"),
)
FACING = re.compile(r"\s*(?:⟷|↔|⇔|<->|<=>)\s*")
INDENT = "    "
# Of a value that names its object, such as {"name": "not kind", …}, rather than being a statement.
MOST_WORDS_OF_NAME = 5


def as_list(reply: str) -> str:
    """Raises ValueError if the reply begins like JSON and is damaged."""
    text = KEY_CAP.sub(r"\1.", reply.translate(CIRCLED)).replace("\u00a0", " ")
    text = EMPHASIS_TAGS.sub("**", LINE_BREAKS.sub("\n", END_TOKENS.sub("", text)))
    match = FENCED_JSON.search(text) or BARE_JSON.search(text)
    if match is not None:
        # Pairs, because a dictionary would hide a key that stands twice.
        value = json.loads(match["json"], object_pairs_hook=_Pairs)
        return "\n".join([text[: match.start()], "", *_json_lines(value, ""), "", text[match.end() :]])
    if JSON_BEGINS.match(text):
        raise ValueError("its JSON is damaged")
    text = CHECK_BOX.sub(r"\1", text)
    for pattern, replacement in LATEX:
        text = pattern.sub(replacement, text)
    if XML_ELEMENT.search(text):
        text = "\n".join(_xml_lines(text))
    return "\n".join(_without_tables([*_without_facing_pairs(text.splitlines())]))


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object."""


def _is_name(text: str) -> bool:
    return 0 < len(text.split()) <= MOST_WORDS_OF_NAME and text.strip("*_ ")[-1:] not in (".", "!", "?", "…")


def _json_lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, _Pairs):
        texts = [item for _, item in value if isinstance(item, str)]
        # An object with a statement may hold names beside it.
        labels = [item for item in texts if _is_name(item) and len(value) > 1]
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


def _xml_lines(text: str) -> Iterator[str]:
    depth, position = 0, 0
    for tag in XML_TAG.finditer(text):
        within = text[position : tag.start()].strip()
        # Text outside of all elements keeps its lines.
        yield INDENT * depth + (" ".join(within.split()) if depth else within) if within else ""
        if not tag["close"]:
            values = re.findall(r"[\"']([^\"']*)[\"']", tag["attributes"])
            yield f"{INDENT * depth}- **{', '.join([tag['tag'], *values])}**:"
        depth = max(0, depth + (-1 if tag["close"] else 1))
        position = tag.end()
    yield text[position:]


def _without_facing_pairs(lines: list[str]) -> Iterator[str]:
    """Two labels on a line, and two statements on the next."""
    waiting: list[str] = []
    for line in lines:
        sides = FACING.split(line.strip())
        if (
            len(sides) == 2
            and all(sides)
            and ":" not in line
            and not waiting
            and len(line.split()) <= 2 * MOST_WORDS_OF_NAME
        ):
            waiting = sides
        elif len(sides) == 2 and all(sides) and waiting:
            yield from (f"{label}: {side}" for label, side in zip(waiting, sides, strict=True))
            waiting = []
        else:
            if waiting and line.strip():
                yield " vs. ".join(waiting)
                waiting = []
            yield line
    if waiting:
        yield " vs. ".join(waiting)


def _without_tables(lines: Sequence[str]) -> Iterator[str]:
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
    columns = [
        (title, cell) for title, cell in zip(titles, cells, strict=False) if not re.fullmatch(r"[\d.#\s]*", cell)
    ]
    names = [cell.strip("* ") for _, cell in columns if _is_name(cell)]
    texts = [(title, cell) for title, cell in columns if cell and not _is_name(cell)]
    if len(texts) == 1:
        yield f"- **{', '.join(names)}**: {texts[0][1]}" if names else f"- {texts[0][1]}"
        return
    yield f"- **{', '.join(names)}**:" if names else ""
    for title, cell in texts:
        yield f"{INDENT if names else ''}- **{title.strip('* ')}**: {cell}"
