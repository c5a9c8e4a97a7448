"""What of a reply is the text of a statement, and what speaks to the person who asked."""

from __future__ import annotations

import re

from sami_nemo.constitution.entries import SENTENCE_END, plain
from sami_nemo.constitution.labels import LabelReader

# A statement shorter than this tells a model nothing.
LEAST_WORDS = 3
MOST_WORDS_OF_LABEL = 5
# Statements that hold none: refusals, and words that keep a place.
REFUSAL = re.compile(
    r"(?:i['’]?m\s+)?sorry\b|i(?:['’]m|\s+am)\s+(?:unable|not\s+able)\b"
    r"|(?:i|we)\s+(?:cannot|can\s*not|can['’]t|will\s+not|won['’]t|would\s+rather\s+not|must\s+decline|decline|refuse)\s+"
    r"(?:to\s+)?(?:provide|write|give|offer|help\s+with|assist\s+with|create|produce|generate|supply|include|define|do|state"
    r"|answer|fulfil)",
    re.IGNORECASE,
)
REFERENCE = re.compile(
    r"(?:see|same\s+as|(?:the\s+)?(?:exact\s+|very\s+|direct\s+|complete\s+)?"
    r"(?:opposite|contrary|reverse|antithesis|inverse|negation)\s+(?:of|to))\s+(?:the\s+)?(?:above|below|\(?\d\)?|(?:first|second)|principle|number|this|that|it\b).{0,30}",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"\W*(?:\[[^\]]*\]|<[^>]*>|\{[^}]*\}|(?:not|none|nothing)\s+(?:applicable|available|provided|given|stated)"
    r"|(?:omitted|withheld|redacted|removed|placeholder)\b.{0,40}"
    r"|to\s+be\s+(?:written|defined|determined|added|done|decided|announced|provided))\W*",
    re.IGNORECASE,
)
# A sentence that gives a choice rather than going on with the statement.
CHOICE = re.compile(
    r"\W*(?:or|alternatively|alternatives?|also|option|version|variant|choice)\b[^.:]{0,30}:", re.IGNORECASE
)
SENTENCE_BREAK = re.compile(r"(?<=[.!?])[\"”’)]*\s+|\s+(?=[(\[])|;\s+")
LEADING_BRACKET = re.compile(r"[(\[][^)\]]{1,40}[)\]]\W*\s(?=\W*[A-Z])")
TRAILING_LABEL = re.compile(
    r"[(\[](?P<bracket>[^()\[\]]+)[)\]]\W*$|[.!?][\"”’)]*\s+(?:[-–—=]|→|⇒)\s*(?P<words>[^.!?]+)$"
)
# Separators at the end, behind which something is missing.
OPEN_END = re.compile(r"(?:[:,;/|=→⇒–—-]|\b(?:vs\.?|versus|and|or))$")
# "(This keeps people informed.)" may speak of the statement.
BRACKETED_SENTENCE = re.compile(r"[.!?][\"”’]*\s+[(\[][^()\[\]]*[)\]]$")
QUOTES = {'"': '"', "“": "””", "”": "”", "„": "“”", "«": "»", "‘": "’", "'": "'", "[": "]"}


class UnusableReply(Exception):
    """The text says what is missing, in words that help the writer to mend it."""


def is_cut(texts: list[str]) -> bool:
    *others, last = texts or [""]
    return bool(others) and all(SENTENCE_END.search(text) for text in others) and not SENTENCE_END.search(last)


def is_empty(text: str) -> bool:
    return (
        len(re.findall(r"\w+", text)) < LEAST_WORDS
        or REFUSAL.match(text) is not None
        or REFERENCE.fullmatch(text) is not None
        or PLACEHOLDER.fullmatch(text) is not None
    )


def clean(text: str) -> str:
    """Without emphasis, quotes around the whole, and runs of white space."""
    text = " ".join(plain(text).split())
    while len(text) > 1 and text[-1] in QUOTES.get(text[0], ""):
        within = text[1:-1]
        if text[0] == "[" and not SENTENCE_END.search(within):
            break
        if {text[0], text[-1]} & set(re.sub(r"(?<=\w)['’](?=\w)", "", within)):
            break
        text = within.strip()
    return text


def is_label_like(text: str) -> bool:
    """A few words that are no sentence."""
    return len(text.split()) <= 3 and not SENTENCE_END.search(text)


def check_no_label(text: str, reader: LabelReader) -> None:
    """Raises UnusableReply if a statement may hold a label before, within or behind it."""
    first, *others = SENTENCE_BREAK.split(text)
    opening = reader.read(first.rstrip(".:")) if others else None
    if LEADING_BRACKET.match(text) or (opening is not None and opening.exact):
        raise UnusableReply("a statement begins with what may be a label")
    trailing = TRAILING_LABEL.search(text)
    if (
        OPEN_END.search(text)
        or BRACKETED_SENTENCE.search(text)
        or (trailing is not None and reader.read(trailing["bracket"] or trailing["words"]))
    ):
        raise UnusableReply("a statement ends with what may be a label")
    for sentence in others:
        label, colon, _ = sentence.partition(":")
        said = reader.read(label, within_sentence=True) if colon and len(label.split()) <= MOST_WORDS_OF_LABEL else None
        if said is not None and (said.names or said.kind):
            raise UnusableReply("a label stands within a statement")
    if any(CHOICE.match(sentence) for sentence in (first, *others)):
        raise UnusableReply("a statement gives a choice")
