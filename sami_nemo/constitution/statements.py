"""What of a reply is the text of a statement, and what speaks to the person who asked."""

from __future__ import annotations

import re

from sami_nemo.constitution.outline import SENTENCE_END, plain

# A statement shorter than this tells a model nothing.
LEAST_WORDS = 3
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
