"""Reading the principle writer's reply: two principles and two antitheses in whatever dress a model gives them.

Each statement belongs to the principle that its label names, in any order and layout. Under a heading for the antitheses
those without a name go by their place. Meaning is never guessed: where labels do not decide, the reply is unusable, and
the writer is asked again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sami_nemo.constitution.asides import NOTE, NOTE_LINE, antithetic_heading, check_beside, check_breaks, without_notes
from sami_nemo.constitution.entries import SECOND_LABEL, SENTENCE_END, Entry, second_label
from sami_nemo.constitution.labels import ORDINALS, LabelReader, plain_label
from sami_nemo.constitution.outline import read_outline
from sami_nemo.constitution.statements import UnusableReply, check_no_label, clean, is_cut, is_empty
from sami_nemo.thinking import without_thinking

__all__ = ["Pair", "UnusableReply", "parse_reply"]

CLOSED = re.compile(r"[.!?…:;][\"'”’)]*$")
LONE_NUMBER = re.compile(r"[.!?]\s+\(?\d{1,2}[.)]$")
ONE_WORD = re.compile(r"[\w'’-]+[.!]\s")
# "Antitheses, in reverse order": then their places tell nothing.
OTHER_ORDER = re.compile(
    r"(?<!same )(?<!that )(?<!this )\border\b(?! to\b)|\b(?:swapped|crossed|respectively reversed)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Pair:
    """A principle and its antithesis."""

    name: str
    principle: str
    antithesis: str


@dataclass
class _Statement:
    entry: Entry
    text: str
    name: int | None
    antithesis: bool


def parse_reply(reply: str, names: Sequence[str], finish_reason: str | None = None) -> tuple[Pair, ...]:
    """The principles and antitheses of a reply, one pair per name.

    Args:
        names: of the principles that were asked for.
        finish_reason: why the writer stopped, as its endpoint says; None: it does not say.

    Raises:
        UnusableReply: it was cut; a principle or an antithesis is missing, empty or there twice; or the labels do not
            say which statement is whose.
    """
    if finish_reason in ("length", "content_filter"):
        raise UnusableReply("it was cut before its end")
    answer = without_thinking(reply)
    if answer is None:
        raise UnusableReply("its thinking never ends, and no answer follows")
    reader = LabelReader(names)
    try:
        # The indent of its first line, which tells that the others stand beside it.
        before = reply[: max(0, reply.find(answer))]
        entries, preface = read_outline(before[len(before.rstrip(" \t")) :] + answer, reader)
    except (ValueError, RecursionError):
        raise UnusableReply("its JSON is damaged") from None
    reading = _Reading(entries, preface, names)

    statements = reading.statements()
    if finish_reason != "stop" and is_cut([statement.text for statement in statements]):
        raise UnusableReply("its last statement ends within a sentence")
    texts = [statement.text.lower() for statement in statements]
    if len(set(texts)) < len(texts):
        raise UnusableReply("it says the same twice")
    for kind, antithesis in (("principles", False), ("antitheses", True)):
        found = sum(statement.antithesis == antithesis for statement in statements)
        if found != len(names):
            raise UnusableReply(f"it has {found} labelled {kind} where {len(names)} are needed{_strangers(statements)}")
    if (empty := reading.empty_name()) is not None:
        raise UnusableReply(f"nothing stands behind a label of {empty}")
    by_place = [statement for statement in statements if statement.name is None]
    _place_unnamed(statements, names, reading.keys, any_order=OTHER_ORDER.search(answer) is not None)
    for statement in statements:
        check_no_label(statement.text, reader)
        entry = statement.entry
        said = reader.read(entry.whole if statement in by_place else entry.foreign, within_sentence=True)
        if said is not None and said.names and statement.name not in said.names:
            raise UnusableReply("a statement mentions another principle than the one it would belong to")
    slots = {(statement.name, statement.antithesis): statement.text for statement in statements}
    if len(slots) < len(statements):
        raise UnusableReply("two of its labels say the same")
    return tuple(Pair(name, slots[number, False], slots[number, True]) for number, name in enumerate(names))


def _strangers(statements: list[_Statement]) -> str:
    """Labels that name no principle, for the writer to see."""
    labels = [statement.entry.foreign for statement in statements if statement.name is None and statement.entry.foreign]
    return f", and labels that name none of the principles: {', '.join(labels)}" if labels else ""


def _place_unnamed(statements: list[_Statement], names: Sequence[str], keys: dict[str, int], any_order: bool) -> None:
    """Under a heading for the antitheses those without a name go by their place among the principles.

    Args:
        keys: numbers and letters of the principles; one before an antithesis may not speak for another place.
        any_order: the reply speaks of another order.
    """
    unnamed = [statement for statement in statements if statement.name is None]
    if not unnamed:
        return
    order = [statement.name for statement in statements if not statement.antithesis]
    named = [statement.name for statement in statements if statement.antithesis and statement.name is not None]
    headings = [antithetic_heading(statement.entry) for statement in unnamed]
    for statement, heading in zip(unnamed, headings, strict=True):
        if not statement.antithesis or heading is None or heading is not headings[0]:
            label = statement.entry.foreign or "a statement"
            raise UnusableReply(f"its labels do not say which of {', '.join(names)} {label!r} belongs to")
    heading = headings[0]
    said = heading.claim.names if heading is not None and heading.claim is not None else ()
    markers = [_marker(statement.entry) for statement in unnamed]
    numbers = re.findall(r"\b\d\b|\bfirst\b|\bsecond\b", heading.whole.lower()) if heading is not None else []
    if (
        any_order
        or markers != sorted(markers)
        or numbers != sorted(numbers)
        or (len(said) > 1 and list(said) != order)
        or len(said) == 1
    ):
        raise UnusableReply("its antitheses do not say which principle each belongs to")
    left = [name for name in order if name not in named]
    if len(left) != len(unnamed) or None in left:
        raise UnusableReply("its antitheses do not say which principle each belongs to")
    for statement, name in zip(unnamed, left, strict=True):
        if keys.get(_marker(statement.entry), name) != name:
            raise UnusableReply("the numbers of its antitheses and their places are of different principles")
        statement.name = name


def _marker(entry: Entry) -> str:
    """The number or letter before an entry, or as its label: "2", "Second"."""
    label = plain_label(entry.foreign)
    return entry.marker or ORDINALS.get(label, label if re.fullmatch(r"\d|[a-d]", label) else "")


def _settle_second(stated: list[Entry], antitheses: list[bool]) -> None:
    """Takes the antonyms behind the names of the antitheses for labels, where these alone have them, each another.

    Raises:
        UnusableReply: what may be a second label may be the beginning of a statement too.
    """
    found = [bool(entry.second) for entry in stated]
    first_words = [ONE_WORD.match(entry.lines[0]) if entry.lines else None for entry in stated]
    if any(first_words) and [word is not None for word in first_words] == antitheses:
        raise UnusableReply("a word before the statements of the antitheses may be another label")
    doubly = any(entry.second and entry.foreign for entry in stated)
    if any(found) and (
        doubly or found != antitheses or len({entry.second.lower() for entry in stated if entry.second}) < sum(found)
    ):
        raise UnusableReply("behind a name stands what may be another label or the statement's beginning")
    for entry in stated:
        if entry.second and (match := SECOND_LABEL.match(entry.lines[0])) is not None:
            entry.lines[0] = entry.lines[0][match.end() :]


class _Reading:
    """Who each entry's label names, and what it states."""

    def __init__(self, entries: list[Entry], preface: list[str], names: Sequence[str]) -> None:
        self._entries = entries
        self._preface = preface
        self._names = names
        self.keys = self._read_keys()
        self._shared: Entry | None = None

    def statements(self) -> list[_Statement]:
        """Every entry with a statement of its own, in the reply's order."""
        stated = without_notes([entry for entry in self._entries if self._states(entry)])
        check_breaks(stated)
        check_beside(self._preface, self._entries, stated)
        self._check_unused(stated)
        roots = [[above for above in entry.ancestors() if above.heading][-1:] for entry in stated]
        if len(roots) >= 2 * len(self._names) and roots[0] and all(root == roots[0] for root in roots):
            # What is said of every entry tells none from another.
            self._shared = roots[0][0]
        lists = [self._is_list(entry) for entry in stated]
        if any(lists) and not all(lists):
            raise UnusableReply("beneath one of its labels stand several statements")
        signs = [self._is_antithesis(entry) for entry in stated]
        named = [self._name(entry) for entry in stated]
        self._settle_foreign(stated, signs)
        _settle_second(stated, signs)
        statements = [
            _Statement(entry, self._text(entry), name, sign)
            for entry, name, sign in zip(stated, named, signs, strict=True)
        ]
        empty = [statement for statement in statements if is_empty(statement.text)]
        # It may be the second of its kind.
        if any(statement.name is not None or statement.antithesis for statement in empty):
            raise UnusableReply("behind one of its labels stands no statement")
        return [statement for statement in statements if statement not in empty]

    def _check_unused(self, stated: list[Entry]) -> None:
        """No label between the statements may stand for nothing: its text would be lost."""
        places = [self._entries.index(entry) for entry in stated]
        for entry in self._entries[places[0] : places[-1]] if places else []:
            if entry.claim is None and entry not in stated and not self._belongs_to_parent(entry):
                above = any(self._states(child) and child.claim is not None for child in entry.children)
                leads = entry.whole.endswith((":", "：")) or NOTE.match(entry.whole)
                if not above and (entry.children or not entry.style.startswith("plain") or not leads):
                    raise UnusableReply(f"nothing says whose {entry.whole!r} is")

    def empty_name(self) -> str | None:
        """A principle that is named by a label with nothing behind it."""
        for entry in self._entries:
            if entry.claim is not None and len(entry.claim.names) == 1 and not entry.lines and not entry.children:
                return self._names[entry.claim.names[0]]
        return None

    def _read_keys(self) -> dict[str, int]:
        """Numbers and letters of the principles: those in their labels, or those before them."""
        principles = [
            entry
            for entry in self._entries
            if entry.claim is not None
            and len(entry.claim.names) == 1
            and (entry.claim.sign >= 0 or entry.claim.of_pair)
            and not any(above.claim is not None and above.claim.sign < 0 for above in entry.ancestors())
        ]
        keys: dict[str, int] = {}
        explicit = any(entry.claim is not None and entry.claim.keys for entry in principles)
        for entry in principles:
            assert entry.claim is not None
            for key in entry.claim.keys if explicit else {entry.marker.rstrip("abcd") or entry.marker} - {""}:
                if keys.setdefault(key, entry.claim.names[0]) != entry.claim.names[0]:
                    keys[key] = -1
        return {key: name for key, name in keys.items() if name >= 0}

    def _states(self, entry: Entry) -> bool:
        """Whether it holds a statement of its own rather than being a heading, or a part of another's statement."""
        if entry.heading and not entry.lines:
            return False
        if entry.claim is None and not self._is_alias(entry):
            if any(self._states(child) and child.claim is not None for child in entry.children):
                return False
            if self._belongs_to_parent(entry):
                return False
        elif (
            entry.claim is not None
            and not entry.claim.names
            and not entry.claim.keys
            and entry.children
            and entry.heading
        ):
            return False
        return bool(entry.lines or self._parts(entry))

    def _belongs_to_parent(self, entry: Entry) -> bool:
        """An inner bullet: no label that is understood, beneath an entry that is named."""
        parent = entry.parent
        if parent is None or parent.heading or (parent.foreign and not parent.lines and parent.claim is None):
            return False
        if entry.foreign and not entry.nested:
            return False
        return parent.claim is not None or self._belongs_to_parent(parent)

    def _is_alias(self, entry: Entry) -> bool:
        """ "Casual" beneath "Formal vs. Casual"."""
        claim = entry.parent.claim if entry.parent is not None else None
        return claim is not None and bool(claim.against) and plain_label(entry.foreign) == claim.against

    def _parts(self, entry: Entry) -> list[Entry]:
        return [
            child
            for child in (entry.children[: entry.before_loose] if entry.loose else entry.children)
            if child.claim is None and not self._is_alias(child) and self._belongs_to_parent(child)
        ]

    def _is_list(self, entry: Entry) -> bool:
        """Whether several whole sentences are bullets beneath its label, which may be statements each."""
        parts = self._parts(entry)
        return not entry.lines and len(parts) > 1 and all(SENTENCE_END.search(part.whole) for part in parts)

    def _is_antithesis(self, entry: Entry) -> bool:
        claim = entry.claim
        if self._is_alias(entry):
            return True
        if claim is not None and claim.doubly:
            raise UnusableReply("a label speaks of the antithesis of a negation")
        own = claim.sign if claim is not None and not claim.of_pair else 0
        if claim is not None and claim.of_pair:
            raise UnusableReply("a label speaks of a principle and its antithesis at once")
        for above in entry.ancestors():
            said = above.claim
            if said is None or said.of_pair or said.sign == 0 or above is self._shared:
                continue
            if not said.names or (not entry.nested and above is entry.parent):
                if said.sign < 0 and not said.names and claim is not None and 2 in claim.negations:
                    raise UnusableReply("an antithesis is labelled like a principle")
                if not said.names:
                    return own < 0 or said.sign < 0
                continue
            if said.sign < 0 and own != 0 and (claim is None or not claim.names):
                raise UnusableReply("beneath the label of an antithesis stands another kind")
            return own < 0 or said.sign < 0
        return own < 0

    def _name(self, entry: Entry) -> int | None:
        claim = entry.claim
        if claim is not None and len(claim.names) > 1:
            raise UnusableReply("a label names two principles")
        own = claim.names[0] if claim is not None and claim.names else None
        claims = [one.claim for one in (entry, *entry.ancestors()) if one.claim is not None and not one.heading]
        keys = next((claim.keys for claim in claims if claim.keys), frozenset())
        tied = {self.keys[key] for key in keys if key in self.keys}
        if len(tied) > 1 or (own is not None and tied - {own}):
            raise UnusableReply("the number and the name in a label are of different principles")
        above = next((above for above in entry.ancestors() if above.claim is not None and above.claim.names), None)
        over = (
            above.claim.names[0]
            if above is not None and above.claim is not None and len(above.claim.names) == 1
            else None
        )
        if own is None and over is None and keys and not tied:
            raise UnusableReply("the number of an antithesis is that of no principle")
        if own is None and tied and (over is None or not entry.nested):
            return tied.pop()
        if own is None and tied - {over}:
            raise UnusableReply("a statement is numbered otherwise than what it stands beneath")
        if own is None and (claim is not None or self._is_alias(entry)):
            return over if over is not None else self._name_of_block(entry)
        if own is not None and over is not None and over != own and entry.nested:
            raise UnusableReply("a statement is labelled otherwise than what it stands beneath")
        return own

    def _name_of_block(self, entry: Entry) -> int | None:
        """An unnumbered "Antithesis: …" on the line behind its principle, where empty lines set the pairs apart."""
        siblings = (
            entry.parent.children if entry.parent is not None else [one for one in self._entries if one.parent is None]
        )
        place = siblings.index(entry)
        before = siblings[place - 1] if place > 0 else None
        behind = siblings[place + 1] if place + 1 < len(siblings) else None
        if before is None or entry.marker or entry.gap or not before.gap or (behind is not None and not behind.gap):
            return None
        claim = before.claim
        return claim.names[0] if claim is not None and len(claim.names) == 1 and claim.sign >= 0 else None

    @staticmethod
    def _settle_foreign(stated: list[Entry], antitheses: list[bool]) -> None:
        """A label that is not understood is one if all like it have one; else it is the statement's beginning."""
        asked = [
            entry
            for entry, antithesis in zip(stated, antitheses, strict=True)
            if antithesis and (entry.claim is None or not entry.claim.names)
        ]
        if any(
            e.foreign and e.claim is not None
            for e, antithesis in zip(stated, antitheses, strict=True)
            if not antithesis
        ):
            raise UnusableReply("before a principle stands what may be another label or its beginning")
        labelled = [entry for entry in asked if entry.foreign]
        if any(entry.doubtful for entry in labelled):
            raise UnusableReply("the label of an antithesis does not name its principle")
        if labelled and len(labelled) < len(asked):
            raise UnusableReply("some of its antitheses have a label, some have none")

    def _text(self, entry: Entry) -> str:
        parts = list(entry.lines)
        if any(NOTE_LINE.match(line) or (line[:1].isupper() and second_label(line)) for line in parts[1:]):
            raise UnusableReply("a note or a label that names no principle stands within a statement")
        inner = self._parts(entry)
        if parts and not CLOSED.search(parts[-1]) and inner and (len(inner) == 1 or inner[0].marker):
            # The line may be broken before a dash or a number of the sentence.
            raise UnusableReply("an inner bullet may or may not be a part of the sentence before it")
        for part in inner:
            if NOTE.match(part.whole) or second_label(part.whole):
                raise UnusableReply("a note or a label that names no principle stands within a statement")
            # A label that is not understood is a part of the text here.
            own = Entry("", 0, lines=[part.whole, *part.lines[0 if part.alone else 1 :]], children=part.children)
            parts.append(self._text(own))
        text = clean(" ".join(parts))
        if LONE_NUMBER.search(text):
            raise UnusableReply("a number stands at the end of a statement, without an entry of its own")
        return text
