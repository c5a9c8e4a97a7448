"""Reading the principle writer's reply: two principles and two antitheses in whatever dress a model gives them.

Models number, bullet, embolden and bracket, put headings between and prose around. What every usable reply has is
labelled entries, "label: text", principles before their antitheses or each followed by its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# "1.", "2)", "(3)", "-", "*", "•", "#": one of them, or a bold or bracketed label, tells an entry from prose.
MARKER = re.compile(r"^\s*(?P<marker>(?:[-•#>]+\s+|\*\s+)*(?:\(?\d{1,2}[.):]\)?\s*|[A-Da-d][.)]\s+)?)(?P<rest>.*)$")
EMPHASIS = re.compile(r"\*\*|__|`")
# Up to a colon or a dash; a label is a few words, not a clause with a comma.
LABELLED = re.compile(r"^(?P<label>\[[^\]\n]{1,80}\]|[^:\n,.;]{1,80}?)\s*(?::|\s[-–—])\s*(?P<text>.*)$")
ANTITHESIS = re.compile(r"\banti|\bcontrast|\bopposite|\bnegat", re.IGNORECASE)
# Labels that say the kind or the place of an entry; its own label may follow, or nothing.
GENERIC = re.compile(
    r"^(?:(?:anti-?thesis|anti-?theses|principle|definition)s?\s*(?:of|to|for)?\s*\(?(?:\d|#|[AB])*\)?)$", re.I
)
# A statement shorter than this tells a model nothing.
LEAST_WORDS = 3


class UnusableReply(Exception):
    """The text says what is missing, in words that help the writer to mend it."""


@dataclass(frozen=True)
class Pair:
    """A principle and its antithesis."""

    name: str
    principle: str
    antithesis: str


@dataclass
class _Entry:
    label: str
    text: str
    antithesis: bool


def parse_reply(reply: str, names: Sequence[str]) -> tuple[Pair, ...]:
    """The principles and antitheses of a reply, one pair per name.

    Args:
        names: of the principles that were asked for; entries that mention them go by name, others by order.

    Raises:
        UnusableReply: there are too few or too many entries, or a statement is empty or said twice.
    """
    entries = [entry for entry in _entries(reply) if len(entry.text.split()) >= LEAST_WORDS]
    wanted = len(names)
    principles = [entry for entry in entries if not entry.antithesis]
    antitheses = [entry for entry in entries if entry.antithesis]
    if not antitheses and len(principles) == 2 * wanted:
        # Nothing marks the antitheses: the format asks for them last.
        principles, antitheses = principles[:wanted], principles[wanted:]
    for kind, found in (("principles", principles), ("antitheses", antitheses)):
        if len(found) != wanted:
            raise UnusableReply(f"it has {len(found)} labelled {kind} where {wanted} are needed")
    if len({entry.text.lower() for entry in (*principles, *antitheses)}) < 2 * wanted:
        raise UnusableReply("it says the same twice")
    ordered = zip(names, _by_name(principles, names), _by_name(antitheses, names), strict=True)
    return tuple(Pair(name, principle.text, antithesis.text) for name, principle, antithesis in ordered)


def _by_name(entries: list[_Entry], names: Sequence[str]) -> list[_Entry]:
    """In the order of the names if each label mentions exactly one of them, else as they are."""
    mentions = [[i for i, name in enumerate(names) if name.lower() in entry.label.lower()] for entry in entries]
    if sorted(mentions) != [[i] for i in range(len(names))]:
        return entries
    return [entries[mentions.index([i])] for i in range(len(names))]


def _entries(reply: str) -> list[_Entry]:
    """Labelled entries, with the lines that go on with them."""
    entries: list[_Entry] = []
    below_antitheses = False
    open_entry = False
    for line in reply.splitlines():
        if not line.strip():
            open_entry = open_entry and bool(entries) and not entries[-1].text
            continue
        marked, label, text = _split(line)
        if label and (marked or GENERIC.match(label)):
            if (not text and not marked) or (not text and _is_heading(label)):
                below_antitheses, open_entry = bool(ANTITHESIS.search(label)), False
                continue
            kind = below_antitheses or bool(ANTITHESIS.search(label))
            entries.append(_Entry(*_own_label(label, text), kind))
            open_entry = True
        elif _is_heading(label or text):
            below_antitheses, open_entry = bool(ANTITHESIS.search(label or text)), False
        elif open_entry:
            entries[-1].text = f"{entries[-1].text} {_clean(line)}".strip()
    return entries


def _split(line: str) -> tuple[bool, str, str]:
    """Whether the line is marked as an entry, its label ("" if it has none) and the text behind."""
    match = MARKER.match(line)
    assert match is not None
    rest = match["rest"].strip()
    emphasised = rest.startswith(("**", "__", "["))
    rest = EMPHASIS.sub("", rest).strip()
    labelled = LABELLED.match(rest)
    marked = bool(match["marker"].strip()) or emphasised
    if labelled is None:
        return marked, "", rest
    return marked, labelled["label"].strip("[]() "), _clean(labelled["text"])


def _own_label(label: str, text: str) -> tuple[str, str]:
    """The label behind a generic one: "Principle 1: [Concise]: Summaries …" is labelled "Concise"."""
    inner = LABELLED.match(text)
    if GENERIC.match(label) and inner is not None and len(inner["label"].split()) <= 4:
        return inner["label"].strip("[]() "), _clean(inner["text"])
    return label, text


def _is_heading(text: str) -> bool:
    """A line that names what comes: "Antitheses:", "## Principles", "Here are two antitheses:"."""
    return (
        len(text.split()) <= 12 and re.search(r"\b(principles|anti-?thes[ei]s|definitions)\b", text, re.I) is not None
    )


def _clean(text: str) -> str:
    """Without emphasis, quotes around the whole, and runs of white space."""
    text = " ".join(EMPHASIS.sub("", text).split())
    if len(text) > 1 and text[0] in '"“' and text[-1] in '"”':
        text = text[1:-1].strip()
    return text.removesuffix("*").strip()
