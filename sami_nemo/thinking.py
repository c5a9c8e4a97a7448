"""A reply without its thinking.

Reasoning models think in the open before they answer. Servers that know the model cut this away; others pass it on, with
the tags of the model or, where special tokens are dropped, with what is left of them.
"""

from __future__ import annotations

import re

# "think" of most models, with what some put before or behind it: <seed:think>, <think_fast>, <ifm|think>.
NAME = (
    r"(?:\w+[:|])?(?:think(?:ing)?|thoughts?|thought_process|reasoning|reflection|scratchpad|inner_monologue|analysis)"
    r"(?:[:_]\w+)?"
)
ATTRIBUTES = r"(?:\s+\w+=[^<>\n]*)?"
MARK = re.compile(
    rf"""
    (?P<open>
        <\s*{NAME}{ATTRIBUTES}\s*> | \[THINK(?:ING)?\] | ◁{NAME}▷ | <\|(?:begin_of_|start_)?{NAME}\|>
        | <\|channel>\w*                                            # Gemma
        | <\|open\|>think<\|sep\|>                                  # Kimi
        | \A\s*Here(?:'s|\sis)\smy\sthought\sprocess:               # Granite
    )
    | (?P<close>
        <\s*/\s*{NAME}\s*> | \[/THINK(?:ING)?\] | ◁/{NAME}▷ | <\|(?:/|end_of_|end_){NAME}\|>
        | <channel\|> | <\|close\|>think<\|sep\|>
    )
    | (?P<final>
        (?:<\|start\|>\w*)?<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>
        | (?-i:assistantfinal)                                      # gpt-oss without its special tokens
        | (?<=\n)Here(?:'s|\sis)\smy\sresponse:
    )
    | (?P<channel>
        (?:<\|start\|>\w*)?<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>
        | (?-i:assistant(?:analysis|commentary) | \A\s*analysis(?=\w|.*assistantfinal))
    )
    | (?P<end><\|(?:end|return|call)\|>)
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
# Within a line. A straight quotation mark opens before a word and closes behind one, so that inches do neither.
QUOTATION = re.compile(
    r"""`[^`\n]+` | (?<!\w)"(?=\S)[^"\n]*(?<=\S)"(?!\w) | (?<!\w)'(?=\S)[^'\n]*(?<=\S)'(?!\w)
    | “[^“”\n]*” | „[^„“”\n]*[“”] | ‘[^‘’\n]*’ | «[^«»\n]*» | 「[^「」\n]*」 | 『[^『』\n]*』""",
    re.VERBOSE,
)
# Words before a tag and a sentence that goes on behind it: "B shows its <think> tag to the user".
MENTION_BEFORE = re.compile(r"\w+\W+\w+,?[ ]+\(?\Z")
# Two words fit into it; longer lines would be searched once for every tag.
MENTION_LENGTH = 80
MENTION_BEHIND = re.compile(r"[ ]+[^\W\d_A-Z]|[,.;)]")


def without_thinking(reply: str) -> str | None:
    """A reply without its thinking, whatever the tags; one that has none is returned as it is, but for outer blanks.

    Where only the end of a thinking block is marked, everything before it was thinking. Tags that are quoted, or
    mentioned within a sentence, mark nothing.

    Returns:
        None: a block of thinking is never closed, so that nothing in the reply is sure to be an answer.
    """
    answer, depth, in_channels, position = "", 0, False, 0
    quotations = [quotation.span() for quotation in QUOTATION.finditer(reply)]
    for mark in MARK.finditer(reply):
        kind = mark.lastgroup
        if _is_mentioned(reply, mark, quotations) or (kind == "end" and not in_channels):
            continue
        if depth == 0:
            answer += reply[position : mark.start()]
        if kind == "open":
            depth += 1
        elif kind == "close" and depth > 0:
            depth -= 1
        elif kind in ("close", "final"):
            answer, depth = "", 0
        else:
            depth = 1 if kind == "channel" else 0
        in_channels |= kind in ("channel", "final")
        position = mark.end()
    return None if depth else (answer + reply[position:]).strip()


def _is_mentioned(reply: str, mark: re.Match[str], quotations: list[tuple[int, int]]) -> bool:
    before = reply[reply.rfind("\n", 0, mark.start()) + 1 : mark.start()]
    if before.lstrip().startswith(">"):
        return True
    if any(start < mark.start() and mark.end() < end for start, end in quotations):
        return True
    return bool(MENTION_BEFORE.search(before[-MENTION_LENGTH:]) and MENTION_BEHIND.match(reply, mark.end()))
