"""Which sampled responses are fit to train on.

Paper, appendix A.10: evasive responses are removed. The other filters follow from its prompts: base models go on
with the next turn of the conversation ("Human:"), copy the example block's placeholders, or run into the limit.

Training needs all N_c responses of a group, and different ones: equal responses have no right row in the contrast.
Evaluation is only cut at the next turn and keeps everything that is not empty: the bound of a model that evades,
stops short or ignores its constitution must show that, and a filter would flatter it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a response is dropped. A response has one reason, the first that applies, so that counts add up."""

    EMPTY = "empty"
    HUMAN_TAIL = "human_tail"
    """It is nothing but the next turn of the conversation."""
    EVASIVE = "evasive"
    PLACEHOLDER = "placeholder"
    TRUNCATED = "truncated"
    IDENTICAL = "identical"
    """Another constitution of the query led to the same text."""


HUMAN_TURN = re.compile(r"\bHuman:")
# Apologies alone, as in the paper: "I can't" also opens good answers to harmful queries.
EVASIVE_OPENING = re.compile(
    r"((i[’']?m|i am|we[’']?re|we are) (\w+ )?)?sorry\b|(i|we) (\w+ )?apologi[sz]e\b|(my )?apologies\b", re.IGNORECASE
)
# Words that ask to be replaced; other brackets ("[citation needed]", "[24 M]", links) are ordinary text.
PLACEHOLDER = re.compile(r"\[\s*(insert|enter|add|fill|your|name|date|company|recipient)\b[^\]\n]*\]", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]*_`]*$")


@dataclass(frozen=True)
class Screened:
    """The responses of one group after the filters."""

    texts: tuple[str, ...]
    """Without what follows "Human:" and without white space around."""
    cut: tuple[bool, ...]
    """Whether a tail was removed."""
    reasons: tuple[Reason | None, ...]
    """Per response; None: it may stay."""

    @property
    def reason(self) -> Reason | None:
        """Why the group is dropped: the first of its responses' reasons in the order of `Reason`."""
        return next((reason for reason in Reason if reason in self.reasons), None)


def screen_training(texts: Sequence[str], require_full_stop: bool) -> Screened:
    """Apply every filter to the N_c responses of a query."""
    trimmed = [cut_human_tail(text) for text in texts]
    occurrences = Counter(trimmed)

    def reason(text: str, kept: str) -> Reason | None:
        if absent := _absence(text, kept):
            return absent
        if EVASIVE_OPENING.match(kept):
            return Reason.EVASIVE
        if PLACEHOLDER.search(kept):
            return Reason.PLACEHOLDER
        if require_full_stop and not SENTENCE_END.search(kept):
            return Reason.TRUNCATED
        return Reason.IDENTICAL if occurrences[kept] > 1 else None

    return _screened(texts, trimmed, [reason(*pair) for pair in zip(texts, trimmed, strict=True)])


def screen_evaluation(texts: Sequence[str]) -> Screened:
    """Cut the responses of a query at the next turn; only absent ones are a reason to drop."""
    trimmed = [cut_human_tail(text) for text in texts]
    return _screened(texts, trimmed, [_absence(*pair) for pair in zip(texts, trimmed, strict=True)])


def cut_human_tail(text: str) -> str:
    """What stands before the first "Human:", without white space around."""
    return HUMAN_TURN.split(text, maxsplit=1)[0].strip()


def _absence(text: str, kept: str) -> Reason | None:
    if kept:
        return None
    return Reason.HUMAN_TAIL if text.strip() else Reason.EMPTY


def _screened(texts: Sequence[str], trimmed: Sequence[str], reasons: Sequence[Reason | None]) -> Screened:
    cut = tuple(kept != text.strip() for text, kept in zip(texts, trimmed, strict=True))
    return Screened(texts=tuple(trimmed), cut=cut, reasons=tuple(reasons))
