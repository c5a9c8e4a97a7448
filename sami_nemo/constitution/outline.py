"""A reply as an outline: entries with the label, the text and the place that each line gives them.

Models number, bullet, embolden and bracket, put headings between and prose around, and nest entries by indents or by
another style of marker. Tables and JSON are rewritten as nested lists first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sami_nemo.constitution.labels import Claim, LabelReader
from sami_nemo.constitution.structured import as_list

RULE = re.compile(r"\s*(?:[-*_=~]\s*){3,}|\s*```.*|\s*~~~.*")
EMPHASIS = re.compile(r"\*\*|__|`|(?<![\w*])\*(?=[^\s*])|(?<=[^\s*])\*(?![\w*])|(?<!\w)_(?=\S)|(?<=\S)_(?!\w)")
EMPHASISED = re.compile(r"(\*\*\*|\*\*|__|\*|_|`|\[|\()(?P<within>.+?)(?:\]|\)|\1)(?!\w)")
HEADING = re.compile(r"(#{1,6})(?:\s+|(?=\D))")
BULLET = re.compile(r"(?P<bullet>[*+\-]|[^\w\s\"'“”‘’«»„()\[\]{}<>*_`#.,;:!?…|$%&@~^=\\/]+)\s+")
NUMBER = re.compile(
    r"(?P<emphasis>[*_]{0,3})(?:no\.\s*|\#)?[(\[]?(?P<number>\d{1,2}(?:\.\d{1,2})*[a-d]?|[a-d]|i{1,3}|iv)"
    r"(?:[.):\]]{1,2}(?:(?P=emphasis)(?=\s)|(?=[\s*\[A-Z\"“]))|(?<=\d)(?=\s+[A-Z*\[])|\s+[-–—](?=\s))\s*",
    re.IGNORECASE,
)
SEPARATOR = re.compile(r"\s*[:：]\s*|\s+[-–—]{1,3}\s+|\s*—\s*|\s*(?:→|⇒|=>|->|⟶|➜)\s*|\s+[=|]\s+")
LONGEST_LABEL = 90
# Another entry on the same line begins behind a sentence, a number or a sign between the two.
FURTHER_ENTRY = re.compile(
    r"(?:(?<=[.!?\"”)*\]])\s+|\s+(?=\(?\d{1,2}[.)]\)?\s)|\s*[;|/⟷↔]\s+)(?=(?:\(?\d{1,2}[.)]\)?\s+)?[\[*_]{0,3}\w[^:.!?]{0,60}:)"
)
SENTENCE_END = re.compile(r"[.!?…][\"'”’)*_\]]*\s*$")
# "And now for the antitheses." is a heading, though it ends like a sentence.
LEAD_IN = re.compile(
    r"(?:and|so|then|next|now|here|below|finally|for contrast|in contrast|conversely|as for)\b.{0,80}$", re.I
)
FINITE_VERB = re.compile(r"\b(?:is|are|be|should|must|shall|will|can|may|has|have|do|does)\b", re.IGNORECASE)
# In words, of a label that is not understood. "Use bad manners at all times: interruptions, sarcasm" has none.
LONGEST_SURE_LABEL = 3
LONGEST_DOUBTFUL_LABEL = 5
# Up to three words and a separator; the statement behind it begins like the label, with a capital or without.
SECOND_LABEL = re.compile(
    rf"[\"“\[(]?(?P<label>(?:(?P<small>[a-z])|\w)[\w'’-]*(?:[ /]\w[\w'’-]*){{0,2}})[\"”\])]?(?:{SEPARATOR.pattern})"
    r"(?=[\"“\[(]?(?(small)\w|[A-Z\d]))"
)


@dataclass(eq=False)
class Entry:
    """A label, its text and what stands beneath.

    Args:
        style: of its marker: "h2", "1", "-", "bold", "plain"; entries of one style are on one level.
        marker: its number or letter, "" if it has none.
        whole: its first line, without its marker.
        claim: what its label says; None: it has no label, or one that is not understood.
        foreign: a label that is not understood.
        doubtful: `foreign` may be the beginning of the statement.
        second: what may be another label behind one that names a principle: "Deceitful" in "Not honest - Deceitful: …".
        alone: the label fills its line.
        heading: it speaks of several entries.
        gap: an empty line stands before.
        nested: it is indented beneath its parent, or its parent has no text of its own.
    """

    style: str
    indent: int
    marker: str = ""
    whole: str = ""
    claim: Claim | None = None
    foreign: str = ""
    doubtful: bool = False
    second: str = ""
    alone: bool = False
    heading: bool = False
    gap: bool = False
    nested: bool = False
    parent: Entry | None = None
    children: list[Entry] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    sudden: list[int] = field(default_factory=list)
    """Lines that begin a sentence at the margin, behind the end of another."""
    had_room: bool = False
    """One of these lines was not begun for want of room."""
    wrapped: bool = False
    """A line goes on with the sentence of another."""
    loose: list[str] = field(default_factory=list)
    """Paragraphs behind it that may or may not be its own."""
    before_loose: int = 0
    """Children that stand before these."""

    def ancestors(self) -> Iterator[Entry]:
        entry = self.parent
        while entry is not None:
            yield entry
            entry = entry.parent


@dataclass(frozen=True)
class _Line:
    text: str
    indent: int
    gap: bool


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


def plain(text: str) -> str:
    """Without emphasis."""
    return EMPHASIS.sub("", text)


def _lines(reply: str, reader: LabelReader) -> Iterator[_Line]:
    gap = True
    for raw in as_list(reply).splitlines():
        line = re.sub(r"^\s*(?:>\s?)+", "", raw.replace("\ufe0f", "")).expandtabs(4).rstrip().removesuffix("\\")
        if not line.strip() or RULE.fullmatch(line):
            gap = True
            continue
        indent = len(line) - len(line.lstrip())
        pieces = _split(line.strip(), reader)
        yield _Line(pieces[0], indent, gap)
        for piece in pieces[1:]:
            # Without a name of its own, a further entry on the line belongs to the first.
            claim = read_head(_Line(piece, indent, False), reader).claim
            named = NUMBER.match(piece) or (claim is not None and claim.names)
            yield _Line(piece, indent if named else indent + 4, False)
        gap = False


def _split(line: str, reader: LabelReader) -> list[str]:
    pieces, start = [], 0
    for match in FURTHER_ENTRY.finditer(line):
        before = line[start : match.start()]
        if not re.search(r"\w{3}", before) or NUMBER.fullmatch(f"{before} "):
            continue
        head = read_head(_Line(line[match.end() :], 0, False), reader)
        if head.claim is not None and not head.claim.plural and (head.claim.names or head.claim.kind) and head.lines:
            pieces.append(before.strip())
            start = match.end()
    return [*pieces, line[start:]]


def read_head(line: _Line, reader: LabelReader) -> Entry:
    """An entry as its first line gives it; style "text" if nothing marks or labels it."""
    rest, style, marker = line.text, "", ""
    if heading := HEADING.match(rest):
        rest, style = rest[heading.end() :].rstrip("# "), f"h{len(heading[1])}"
    for _ in range(2):
        if bullet := BULLET.match(rest):
            rest, style = rest[bullet.end() :], style or bullet["bullet"]
        elif (number := NUMBER.match(rest)) and not marker:
            marker = number["number"].lower()
            closed = rest[number.start() : number.end()].count(number["emphasis"]) > 1
            rest = ("" if closed else number["emphasis"]) + rest[number.end() :]
            kind = "1" + "." * marker.count(".") if marker[0].isdigit() else "a" if marker in "abcd" else "i"
            style = style if style.startswith("h") else kind
    entry = Entry(style, line.indent, marker, gap=line.gap)
    _read_label(entry, rest.strip(), reader)
    if not entry.style:
        emphasised = EMPHASISED.match(rest) is not None
        found = entry.claim is not None or entry.foreign
        entry.style = ("bold" if emphasised else "plain") if found else "text"
        entry.style += "!" * (entry.alone and entry.style != "text")
    return entry


def _read_label(entry: Entry, rest: str, reader: LabelReader) -> None:
    emphasised = EMPHASISED.match(rest)
    first = plain(emphasised["within"]).strip() if emphasised else ""
    text = entry.whole = plain(rest).strip()
    is_line = bool(
        entry.style.startswith("h") or (emphasised and len(plain(emphasised["within"])) >= len(text.rstrip(" :.")))
    )
    entry.claim, text = _understood(text, reader, bool(entry.style) or is_line)
    if entry.claim is None and first and (claim := reader.read(first.strip(" :."))) is not None and not is_line:
        entry.claim, text = claim, plain(rest[emphasised.end() :] if emphasised else "").lstrip(" :-–—")
    if entry.claim is not None and not text:
        entry.alone = True
        entry.heading = entry.claim.plural and not entry.claim.keys
        return
    if entry.claim is None and (is_line or text.endswith((":", "：")) or (entry.gap and LEAD_IN.match(text))):
        _read_heading(entry, text, reader, is_line)
        if entry.alone:
            return
    if entry.claim is None or not entry.claim.names:
        text = _read_foreign(entry, text, first, is_line)
    if entry.foreign or (entry.claim is not None and entry.claim.names):
        entry.second = second_label(text)
    entry.lines = [text] if text else []


def _understood(text: str, reader: LabelReader, marked: bool) -> tuple[Claim | None, str]:
    """What the labels at the beginning say, one behind another, and the text behind them."""
    claim: Claim | None = None
    while separator := _separator(text):
        found = reader.read(text[: separator.start()])
        if found is None or (claim is not None and claim.names and not _goes_on(found, separator)):
            break
        claim = found if claim is None else claim.and_(found)
        text = text[separator.end() :].strip()
    whole = reader.read(text.rstrip(" :：.")) if text else None
    stands_alone = text.endswith((":", "：")) or (claim is None and marked and not SENTENCE_END.search(text))
    if whole is not None and len(text) <= LONGEST_LABEL and (whole.exact or stands_alone):
        return (whole if claim is None else claim.and_(whole)), ""
    if claim is None and marked and (stop := re.match(r"([^.:]{1,40})\.\s+(?=\S)", text)):
        found = reader.read(stop[1])
        if found is not None and found.exact and found.names:
            return found, text[stop.end() :]
    return claim, text


def _goes_on(found: Claim, separator: re.Match[str]) -> bool:
    """Whether what follows a name is a label too: "Helpful: Principle: …", not "Honest: Honest - always - and …"."""
    if found.kind != 0 and not found.names:
        return found.exact
    said = found.sign < 0 or (found.neutral and not found.names)
    return found.exact and said and separator.group().strip() in (":", "：")


def _separator(text: str) -> re.Match[str] | None:
    """The first outside of brackets."""
    for match in SEPARATOR.finditer(text[: LONGEST_LABEL + 3]):
        before = text[: match.start()]
        if before and before.count("(") == before.count(")") and before.count("[") == before.count("]"):
            return match
    return None


def _read_heading(entry: Entry, text: str, reader: LabelReader, is_line: bool) -> None:
    """A line such as "Now the antitheses:", or a heading whose words are not understood."""
    claim = reader.read(text, within_sentence=True)
    short = len(text.split()) <= 8 and not SENTENCE_END.search(text)
    if (
        claim is not None
        and (claim.kind or claim.plural)
        and (short or text.endswith((":", "：")) or LEAD_IN.match(text))
    ):
        several = claim.plural or claim.kind > 0
        entry.claim = replace(claim, names=() if claim.kind >= 0 else claim.names, against="", negations=frozenset())
        entry.alone, entry.heading = True, several or not claim.names
    elif (is_line and short) or len(text.split()) <= (4 if entry.style else LONGEST_SURE_LABEL):
        entry.foreign, entry.alone = text.strip(" :"), True


def _read_foreign(entry: Entry, text: str, first: str, is_line: bool) -> str:
    """Notes a label that is not understood; returns the text behind it."""
    separator = _separator(text)
    label, behind = (text[: separator.start()], text[separator.end() :]) if separator else ("", text)
    words = len(label.split())
    if label and first and not is_line and label.strip(" []") == first.strip(" :[]") and words <= 6:
        entry.foreign = label
        return behind
    if first and not is_line and not label and len(first.split()) <= LONGEST_SURE_LABEL:
        bracket = re.match(r"[\[(][^\])]+[\])]\s+(?=\S)", text)
        behind = text[bracket.end() if bracket else len(first) :].strip()
        if bracket or (text.startswith(first) and behind[:1].isupper()):
            entry.foreign = first.strip(" :.")
            entry.doubtful = not bracket and not first.endswith((":", "."))
            return behind
    if not label and text and len(text.split()) <= 3 and not SENTENCE_END.search(text) and (entry.style or entry.claim):
        entry.foreign, entry.alone = text, True
        return ""
    if not label or not behind or FINITE_VERB.search(label) or words > LONGEST_DOUBTFUL_LABEL:
        return text
    bracketed = label.startswith("[") and label.endswith("]")
    # Behind a label a statement begins; within a statement it goes on.
    begins = behind[0].isupper() or behind[0] in '"“['
    broken = separator is not None and separator.group().strip() not in (":", "：") and words > 1
    if not bracketed and not begins and (words > 2 or broken):
        return text
    entry.foreign = label.strip("[] ")
    entry.doubtful = not bracketed and (words > LONGEST_SURE_LABEL or not begins)
    return behind


def second_label(text: str) -> str:
    """A few words and a separator at the beginning of a text, which may be a label."""
    match = SECOND_LABEL.match(text)
    return match["label"] if match is not None and not FINITE_VERB.search(match["label"]) else ""


class _Outline:
    def __init__(self, reader: LabelReader, width: int) -> None:
        self.entries: list[Entry] = []
        self.preface: list[str] = []
        """Lines before the first entry."""
        self._width = width
        self._length = 0
        self._reader = reader
        self._stack: list[Entry] = []

    def add(self, line: _Line) -> None:
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

    def _continue(self, last: Entry | None, line: _Line) -> None:
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
    if entry.claim is not None and not entry.claim.names and not entry.claim.kind:
        return not entry.gap
    return last is not None and bool(last.lines) and not entry.gap and not SENTENCE_END.search(last.lines[-1])


def _is_left_of_bullet(line: _Line, last: Entry) -> bool:
    """A sentence that begins at the margin, behind an inner bullet that ended with a sentence."""
    return last.claim is None and last.parent is not None and bool(SENTENCE_END.search(last.lines[-1]))


def _same_level(above: Entry, entry: Entry) -> bool:
    if entry.style.startswith("h"):
        return not (above.style.startswith("h") and above.style < entry.style) and not (
            above.heading and not above.style.startswith("h")
        )
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
