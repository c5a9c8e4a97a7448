"""What stands beside the statements of a reply: prefaces, notes, words to the person who asked."""

from __future__ import annotations

import re
from itertools import pairwise

from sami_nemo.constitution.entries import SENTENCE_END, Entry
from sami_nemo.constitution.statements import CHOICE, UnusableReply, is_label_like

# What is said behind the last statement may take back what stands before.
CORRECTION = re.compile(
    r"\b(?:swap(?:ped)?|mix(?:ed)? (?:\w+ )?up|corrections?|mistake|scratch that|vice versa|exchanged?|wait|oops"
    r"|other way (?:a?round))\b",
    re.IGNORECASE,
)
NOTE = re.compile(
    r"\W*(?:(?:please\s+)?(?:a\s+|final\s+|important\s+)?notes?|n\.?\s?b|p\.?\s?s|explanations?|rationale|remarks?|comments?"
    r"|disclaimer|caveats?|usage|reminder|remember|recall|tips?|important|warning|why|reason(?:ing)?|examples?|e\.g)\b",
    re.IGNORECASE,
)
NOTE_LINE = re.compile(NOTE.pattern + r"[^.:]{0,20}:", re.IGNORECASE)
# A line that speaks to the person who asked, close behind the last statement.
CLOSING = re.compile(
    r"\W*(?:let me know|i hope|hope (?:this|that|these)|feel free|please|would you|do (?:you|these)|does (?:this|that)"
    r"|shall i|if you|is there|happy to|good luck|these (?:principles|antitheses|definitions|statements|four|pairs|can|are)"
    r"|the(?:se)? (?:antitheses|pairs|four|above)|thank|together|this constitution|i can also|as you)\b",
    re.IGNORECASE,
)
ANTITHESIS_LINE = re.compile(r"antithes|opposites?\b|contrast", re.IGNORECASE)


# Words of a preface or an afterword; an entry of a principle that was not asked for has none.
ADDRESS = re.compile(
    r"\b(?:here|below|above|following|these|this|i|we|you|your|our|constitution|principles?|antithes\w*|statements?)\b",
    re.IGNORECASE,
)


def antithetic_heading(entry: Entry) -> Entry | None:
    """The heading for the antitheses that an entry without a name stands under."""
    for above in entry.ancestors():
        if above.claim is not None and above.claim.kind < 0 and above.heading:
            return above
    return None


def without_notes(stated: list[Entry]) -> list[Entry]:
    """Without what stands before the first statement with a label, and without notes behind the last."""
    notes = {entry for entry in stated if entry.claim is None and NOTE.match(entry.foreign) and not entry.marker}
    notes |= {entry for entry in stated if any(NOTE.match(one.foreign) and not one.lines for one in entry.ancestors())}
    said = [entry for entry in stated if entry.claim is not None or antithetic_heading(entry)]
    first, last = next(iter(said), None), next((entry for entry in reversed(said) if entry not in notes), None)
    styles = {entry.style.rstrip("!") for entry in said}
    kept, begun, ended = [], False, False
    for entry in stated:
        begun |= entry is first
        strange = entry.claim is None and not entry.marker
        aside = entry in notes and (ended or (entry.gap and not entry.nested))
        before = strange and not begun and entry.foreign and entry.style.rstrip("!") not in styles
        if aside and entry.claim is not None:
            raise UnusableReply("a label stands beneath a note")
        if not (aside or before or (strange and ended and CLOSING.match(entry.foreign))):
            kept.append(entry)
        ended |= entry is last
    return kept


def check_breaks(stated: list[Entry]) -> None:
    """Lines that begin a sentence at the margin are parts of statements where lines are broken at a width, or
    where every statement has such; a closing line is cut off the last.

    Raises:
        UnusableReply: a line may or may not be a part of a statement.
    """
    for place in stated[-1].sudden if stated else []:
        if CLOSING.match(stated[-1].lines[place]) or NOTE.match(stated[-1].lines[place]):
            del stated[-1].lines[place:]
            stated[-1].sudden = [before for before in stated[-1].sudden if before < place]
            break
    if len(stated) > 1 and len(stated[-1].sudden) > max(len(entry.sudden) for entry in stated[:-1]):
        raise UnusableReply("a line behind its last statement may or may not be a part of it")
    wrapped = any(entry.wrapped for entry in stated)
    sudden = [entry for entry in stated if entry.sudden]
    if len(sudden) < len(stated) and any(entry.had_room or not wrapped for entry in sudden):
        raise UnusableReply("a line behind a statement may or may not be a part of it")
    if any(ANTITHESIS_LINE.search(entry.lines[place]) for entry in sudden for place in entry.sudden):
        raise UnusableReply("a line between its statements speaks of antitheses")


def check_beside(preface: list[str], entries: list[Entry], stated: list[Entry]) -> None:
    """Raises UnusableReply if text beside the statements may be a part of one, or another, or corrects them."""
    first = entries.index(stated[0]) if stated else 0
    beside = [[entry.foreign, *entry.lines] for entry in entries[:first] if entry.claim is None and entry.foreign]
    if any(_has_entry(lines) for lines in (*beside, preface, stated[-1].loose if stated else [])):
        raise UnusableReply("a label that names no principle stands before or behind its statements")
    if any(CORRECTION.search(text) or CHOICE.match(text) for entry in entries for text in entry.loose):
        raise UnusableReply("text beside its statements corrects them")
    for entry in entries[: entries.index(stated[-1])] if stated else []:
        parted = entry.loose and any(child.claim is None for child in entry.children[entry.before_loose :])
        for text in entry.loose:
            if parted or not (text.endswith(":") or NOTE.match(text)):
                raise UnusableReply("text stands between its statements, and may or may not be a part of one")


def _has_entry(lines: list[str]) -> bool:
    """Whether a few words and a sentence on the next line may be an entry: "Honest", "Tell the truth."."""
    return any(
        is_label_like(label)
        and not label.endswith((":", ","))
        and SENTENCE_END.search(text)
        and not (NOTE.match(label) or ADDRESS.search(f"{label} {text}"))
        for label, text in pairwise(lines)
    )
