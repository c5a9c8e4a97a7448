"""One line of a reply as an entry: its marker, what its label says, and the text behind it.

Models number, bullet, embolden and bracket; a label is understood, foreign, or no label at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sami_nemo.constitution.labels import Claim, LabelReader

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
class Line:
    text: str
    indent: int
    gap: bool


def plain(text: str) -> str:
    """Without emphasis."""
    return EMPHASIS.sub("", text)


def read_head(line: Line, reader: LabelReader) -> Entry:
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
        if found is None or (claim is not None and claim.names and not _goes_on(found)):
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


def _goes_on(found: Claim) -> bool:
    """Whether what follows a name is a label too: "Helpful: Principle: …", not "Honest: Honest - always - and …"."""
    return found.exact and not found.names and (found.kind != 0 or found.neutral)


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
    if first and not is_line and not label and len(first.split()) <= LONGEST_SURE_LABEL:
        bracket = re.match(r"[\[(][^\])]+[\])]\s+(?=\S)", text)
        behind = text[bracket.end() if bracket else len(first) :].strip()
        if bracket or (text.startswith(first) and behind[:1].isupper()):
            entry.foreign = first.strip(" :.")
            entry.doubtful = not bracket and not first.endswith((":", "."))
            return behind
    if (
        not label
        and len(text.split()) <= LONGEST_SURE_LABEL
        and not SENTENCE_END.search(text)
        and (entry.style or entry.claim)
    ):
        entry.foreign, entry.alone = text, True
        return ""
    if not label or not behind or FINITE_VERB.search(label) or words > LONGEST_DOUBTFUL_LABEL:
        return text
    # Behind a label a statement begins; within a statement it goes on.
    begins = behind[0].isupper() or behind[0] in '"“['
    assert separator is not None
    broken = separator.group().strip() not in (":", "：") and words > 1
    # A principle needs no antonym.
    principle = entry.claim is not None and entry.claim.sign >= 0
    if not begins and (words > 2 or broken or principle):
        return text
    entry.foreign = label.strip("[] ")
    entry.doubtful = words > LONGEST_SURE_LABEL or not begins
    return behind


def second_label(text: str) -> str:
    """A few words and a separator at the beginning of a text, which may be a label."""
    match = SECOND_LABEL.match(text)
    return match["label"] if match is not None and not FINITE_VERB.search(match["label"]) else ""
