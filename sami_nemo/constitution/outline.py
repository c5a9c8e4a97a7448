"""A reply as an outline: entries with the label, the text and the place that each line gives them.

Models put headings between and prose around, and nest entries by indents or by another style of marker. Tables and
JSON are rewritten as nested lists first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sami_nemo.constitution.entries import NUMBER, SENTENCE_END, Entry, Line, plain, read_head
from sami_nemo.constitution.labels import LabelReader
from sami_nemo.constitution.structured import as_list

RULE = re.compile(r"\s*(?:[-*_=~]\s*){3,}|\s*```.*|\s*~~~.*")
# Another entry on the same line begins behind a sentence, a number or a sign between the two.
FURTHER_ENTRY = re.compile(
    r"(?:(?<=[.!?\"”)*\]])\s+|\s+(?=\(?\d{1,2}[.)]\)?\s)|\s*[;|/⟷↔]\s+)(?=(?:\(?\d{1,2}[.)]\)?\s+)?[\[*_]{0,3}\w[^:.!?]{0,60}:)"
)


def read_outline(reply: str, reader: LabelReader) -> tuple[list[Entry], list[str]]:
    """The entries of a reply in its order, headings among them, and the lines before the first.

    Raises:
        ValueError: it holds JSON that is damaged.
    """
    lines = list(_lines(reply, reader))
    outline = _Outline(reader, max((line.indent + len(line.text) for line in lines), default=0))
    for line in lines:
        outline.add(line)
    return outline.entries, outline.preface


def _lines(reply: str, reader: LabelReader) -> Iterator[Line]:
    gap = True
    for raw in as_list(reply).splitlines():
        line = re.sub(r"^\s*(?:>\s?)+", "", raw.replace("\ufe0f", "")).expandtabs(4).rstrip().removesuffix("\\")
        if not line.strip() or RULE.fullmatch(line):
            gap = True
            continue
        indent = len(line) - len(line.lstrip())
        pieces = _split(line.strip(), reader)
        yield Line(pieces[0], indent, gap)
        for piece in pieces[1:]:
            # Without a name of its own, a further entry on the line belongs to the first.
            claim = read_head(Line(piece, indent, False), reader).claim
            named = NUMBER.match(piece) or (claim is not None and claim.names)
            yield Line(piece, indent if named else indent + 4, False)
        gap = False


def _split(line: str, reader: LabelReader) -> list[str]:
    pieces, start = [], 0
    for match in FURTHER_ENTRY.finditer(line):
        before = line[start : match.start()]
        if not re.search(r"\w{3}", before) or NUMBER.fullmatch(f"{before} "):
            continue
        head = read_head(Line(line[match.end() :], 0, False), reader)
        if head.claim is not None and not head.claim.plural and (head.claim.names or head.claim.kind) and head.lines:
            pieces.append(before.strip())
            start = match.end()
    return [*pieces, line[start:]]


class _Outline:
    def __init__(self, reader: LabelReader, width: int) -> None:
        self.entries: list[Entry] = []
        self.preface: list[str] = []
        """Lines before the first entry."""
        self._width = width
        self._length = 0
        self._reader = reader
        self._stack: list[Entry] = []

    def add(self, line: Line) -> None:
        entry = read_head(line, self._reader)
        last = self.entries[-1] if self.entries else None
        foreign = entry.claim is None and entry.style in ("text", "plain", "plain!")
        unlabelled = foreign and not (entry.style != "text" and self._is_entry(entry, last))
        unlabelled |= entry.style == "plain!" and not line.text.endswith((":", "：")) and _ends_sentence(entry, last)
        if unlabelled:
            self._continue(last, line)
            self._length = line.indent + len(line.text)
            return
        self._length = line.indent + len(line.text)
        if last is not None and last.alone and not last.lines and _is_kind(last):
            self._make_heading(last, entry)
        self._place(entry)
        self.entries.append(entry)

    def _make_heading(self, last: Entry, entry: Entry) -> None:
        """ "Antithesis:" is a heading above entries that cannot stand beneath it otherwise, else the label of a text."""
        above = list(last.ancestors())
        named = entry.claim is not None and bool(entry.claim.names)
        if (last.nested and any(one.claim is not None and one.claim.names for one in above)) or last.heading:
            return
        if named or any(_same_level(one, entry) for one in above):
            last.heading = True
            if last.parent is not None and not last.nested:
                last.parent.children.remove(last)
                last.parent, self._stack[:] = None, [last]

    def _is_entry(self, entry: Entry, last: Entry | None) -> bool:
        """Whether an unmarked line with a foreign label stands for itself: behind a whole sentence, and not wrapped."""
        if last is None or (entry.indent > last.indent and not entry.gap):
            return last is None
        return bool(last.lines) and bool(SENTENCE_END.search(last.lines[-1]))

    def _continue(self, last: Entry | None, line: Line) -> None:
        text = plain(line.text).strip()
        if last is None:
            self.preface.append(text)
        if last is None or last.heading or not text:
            return
        apart = last.lines and line.indent < last.indent + 2 and (line.gap or _is_left_of_bullet(line, last))
        if last.loose or apart:
            last.before_loose = last.before_loose if last.loose else len(last.children)
            last.loose.append(text)
            return
        if last.lines and line.indent <= last.indent and SENTENCE_END.search(last.lines[-1]):
            last.sudden.append(len(last.lines))
            # Where lines are broken at a width, the next word had no room.
            last.had_room |= self._length + 1 + len(text.split()[0]) <= self._width
        elif last.lines:
            last.wrapped = True
        last.lines.append(text)

    def _place(self, entry: Entry) -> None:
        stack = self._stack
        owner = _unsaid(stack) if _is_kind(entry) and not entry.heading else None
        if entry.heading and not entry.marker and owner is None and entry.indent < 2:
            level = entry.style if entry.style.startswith("h") else "h0"
            stack[:] = [
                above for above in stack if above.style.startswith("h") and above.style < level and not above.heading
            ]
        elif owner is not None:
            del stack[stack.index(owner) + 1 :]
        else:
            while stack and stack[-1].indent >= entry.indent + 2 and not stack[-1].heading:
                stack.pop()
            same = [above for above in stack if _same_level(above, entry)]
            if same:
                del stack[stack.index(same[-1]) :]
        if stack:
            entry.parent = stack[-1]
            first = not stack[-1].lines and (entry.claim is not None or bool(entry.marker) or not stack[-1].children)
            bullet = not entry.style.startswith(("plain", "bold")) and not stack[-1].lines
            entry.nested = entry.indent >= stack[-1].indent + 2 or first or bullet
            stack[-1].children.append(entry)
        stack.append(entry)


def _ends_sentence(entry: Entry, last: Entry | None) -> bool:
    """Whether an unmarked line that reads like a label is the end of a sentence: "the title).", "kind."."""
    return last is not None and bool(last.lines) and not entry.gap and not SENTENCE_END.search(last.lines[-1])


def _is_left_of_bullet(line: Line, last: Entry) -> bool:
    """A sentence that begins at the margin, behind an inner bullet that ended with a sentence."""
    return last.claim is None and last.parent is not None and bool(SENTENCE_END.search(last.lines[-1]))


def _same_level(above: Entry, entry: Entry) -> bool:
    return (
        above.style == entry.style and abs(above.indent - entry.indent) < 2 and not (above.heading and not above.marker)
    )


def _is_kind(entry: Entry) -> bool:
    """Says no more than "principle", "antithesis" or "definition"."""
    claim = entry.claim
    return claim is not None and not claim.names and not claim.keys and (claim.kind != 0 or claim.neutral)


def _unsaid(stack: list[Entry]) -> Entry | None:
    """The named label without a text of its own that the kinds beneath it belong to."""
    for above in reversed(stack):
        if above.claim is not None and len(above.claim.names) == 1:
            return None if above.lines else above
    return None
