"""A judge's own words: its reply in plain characters, without thinking, tokens, wrapping and quotation."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from sami_nemo.thinking import QUOTATION, without_thinking

# What NFKC leaves, because it takes it for other letters and marks.
LOOK_ALIKES = {
    "A": "АΑᴀᎪ🅰🅐🇦",
    "B": "ВΒʙᏴ🅱🅑🇧",
    "AB": "🆎",
    "a": "а",
    "[": "【〔〖",
    "]": "】〕〗",
    "<": "〈《⟨",
    ">": "〉》⟩",
    "-": "‐‑‒–—―−",
    ":": "∶꞉︰",
    ">>": "→⇒➡➜➔👉▶",
    # Drawn around a letter, or seen as nothing. Not U+20E0, which crosses a letter out.
    "": "\u20dd\u20de\u20e3\u034f\u1160\u2800",
}
TABLE = str.maketrans({sign: plain for plain, signs in LOOK_ALIKES.items() for sign in signs})
# Control and format characters; and what chooses the look or the colour of the sign before it.
INVISIBLE_CATEGORIES = ("Cc", "Cf")
VARIANTS = re.compile("[\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]")
# Later than the others: until quotations are gone it matters which of them opens.
QUOTATION_MARKS = str.maketrans("“”„‟«»「」『』‘’‚‛‹›", '"' * 10 + "'" * 6)

BEGIN_TOKEN = re.compile(r"\A\s*<(?:s|bos)>")
# What stands behind it is another turn.
END_OF_TURN = re.compile(
    r"""
    <\|(?:im_end|eot_id|eom_id|end_of_text|endoftext|end_of_turn|end_of_turn_token|eos|end|return|user)\|>
    | <\|end▁of▁sentence\|> | <\|im_start\|>user | <start_of_turn>user | <(?:/s|eos|end_of_turn)> | \[/?INST\] | \[EOS\]
    """,
    re.IGNORECASE | re.VERBOSE,
)
OTHER_TOKENS = re.compile(r"<\|[^|<>\n]*\|>|<start_of_turn>(?:model)?")
COMMENT_OR_STRUCK = re.compile(
    r"<!--.*?-->|<(s|del|strike)>[^\n]*?</\1>|(?<!~)~~(?!~)[^~\n]+~~(?!~)", re.IGNORECASE | re.DOTALL
)
# Markup in the plain signs that say the same, so that nothing later needs to know it.
MARKUP = (
    (re.compile(r"<br\s*/?>|</(?:p|div|li|h\d|tr)>", re.IGNORECASE), "\n"),
    (re.compile(r"</?(?:code|kbd|samp|tt)>", re.IGNORECASE), "`"),
    (re.compile(r"</?q>", re.IGNORECASE), '"'),
    (re.compile(r"</?(?:pre|blockquote)>", re.IGNORECASE), "\n```\n"),
    (re.compile(r"<final[ _-]?(response|answer)>", re.IGNORECASE), r"\nFinal \1: "),
    (re.compile(r"</final[ _-]?(?:response|answer)>", re.IGNORECASE), "\n"),
    (re.compile(r"\\([*_#`])"), r"\1"),
)

# What an answer is announced by; "Final Response" was asked for.
MARKER = re.compile(
    r"(?<![^\W_])final[\s_*-]{0,4}(?:response|answer|verdict|decision|choice|judge?ment|selection|pick)(?![^\W_])",
    re.IGNORECASE,
)
# Between marker and answer. The choices may be named before the colon: Final Response ("A" or "B"): A
SEPARATOR = re.compile(
    r"""
    [ \t*_"'`\])}]*
    (?: [(\[<][^)\]>\n]*[)\]>] [ \t*_]* (?=:) )?
    (?: :+-?(?!\w) | : | =+>? | -+>?[ \t] | >+ | \| | \bis\b:? )
    [ \t]*
    """,
    re.IGNORECASE | re.VERBOSE,
)

FENCE = re.compile(r"^[ \t]*(```+|~~~+)(?![`~])[^\n`]*\n(?P<body>.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
BLOCK_QUOTE = re.compile(r"(?:^[ \t]*>[^\n]*(?:\n|\Z))+", re.MULTILINE)
WHOLLY_QUOTED = ('""', "''", "``", "“”", "„“", "‘’", "«»", "「」", "『』")
# A reply that ends with its answer in code marks or quotation marks, on a line of its own.
QUOTED_END = re.compile(
    r"\n[*_ ]*(?:```\w*\n(?P<fenced>[^\n]*)\n```|(?P<sign>``?|\"|')(?P<quoted>[^\n]*)(?P=sign))[*_ ]*\Z"
)
# Else the line above goes on with the quotation.
SENTENCE_ENDS = (".", "!", "?", "。", "*", "|", "---")
COMPARISON = re.compile(r"^\W*comparison\b", re.IGNORECASE | re.MULTILINE)


def own_words(text: str) -> str | None:
    """What a judge says for itself.

    Quoted text goes only where it states an answer: that of a response, or the format. Quotation marks that stay are
    straight.

    Args:
        text: the reply.

    Returns:
        None: a block of thinking is never closed.
    """
    reply = without_thinking(_plain(text))
    return None if reply is None else _without_quotations(_unwrapped(_without_tokens(reply)))


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", html.unescape(text).translate(TABLE)).translate(TABLE)
    text = "\n".join(VARIANTS.sub("", text).splitlines())
    return "".join(s for s in text if s in "\n\t" or unicodedata.category(s) not in INVISIBLE_CATEGORIES)


def _without_tokens(reply: str) -> str:
    reply = COMMENT_OR_STRUCK.sub("", BEGIN_TOKEN.sub("", reply))
    reply = OTHER_TOKENS.sub("\n", END_OF_TURN.split(reply)[0])
    for pattern, plain in MARKUP:
        reply = pattern.sub(plain, reply)
    return reply.strip()


def _unwrapped(reply: str) -> str:
    """A reply that stands in a fence, in a block quote, in JSON or in quotation marks as a whole, without that."""
    fence = FENCE.match(reply)
    if fence:
        reply = (fence["body"] + reply[fence.end() :]).strip()
    if BLOCK_QUOTE.fullmatch(reply):
        reply = re.sub(r"^[ \t]*>[ \t]?", "", reply, flags=re.MULTILINE).strip()
    try:
        content = json.loads(reply, strict=False)
        return content if isinstance(content, str) else "\n".join(f"Final Response: {v}" for v in _answers_in(content))
    except (ValueError, RecursionError):
        around, inside = reply[:1] + reply[1:][-1:], reply[1:-1]
        return inside if around in WHOLLY_QUOTED and not set(around) & set(inside) else reply


def _answers_in(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            if MARKER.fullmatch(key):
                yield value if isinstance(value, str) else json.dumps(value)
            else:
                yield from _answers_in(value)


def _without_quotations(reply: str) -> str:
    end = QUOTED_END.search(reply)
    before = reply[: end.start()].rstrip() if end else ""
    if end and COMPARISON.search(before) and before.endswith(SENTENCE_ENDS) and not MARKER.search(before):
        return f"{before}\n{end['fenced'] or end['quoted']}".translate(QUOTATION_MARKS)
    for quotation in (FENCE, BLOCK_QUOTE, QUOTATION):
        reply = quotation.sub(_unless_it_answers, reply)
    return reply.translate(QUOTATION_MARKS)


def _unless_it_answers(quotation: re.Match[str]) -> str:
    text = quotation.groupdict().get("body") or quotation[0]
    return "\n" if any(SEPARATOR.match(text, marker.end()) for marker in MARKER.finditer(text)) else text
