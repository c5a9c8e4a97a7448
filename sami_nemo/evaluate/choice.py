"""Reading a judge's choice: the letter behind the last "Final Response:", where it is all of the answer.

A wrong verdict is worse than none. So whatever is not known to be dress (emphasis, brackets, quotation marks, a box,
"Response", a full stop) makes the answer something else than a letter, and what leaves a doubt leaves no choice.
"""

from __future__ import annotations

import re
from typing import Literal

from sami_nemo.evaluate.judge_reply import MARKER, SEPARATOR, own_words

Choice = Literal["A", "B"]

# Finish reasons of a reply that was going to say more.
CUT = ("length", "max_tokens", "content_filter")

# Signs that approve. Others may refuse, doubt or say that both are alike.
APPROVING = "✅✔✓☑🏁⭐🌟✨🏆🥇🏅👑🎯💯👍🎉🙂😊🔹🔷🔵🟢🟩📌"
TAG = r"(?:b|i|u|p|em|strong|span|div|center|font|mark|big|small|answer|response|final|output|verdict|choice|letter)"

# Where a statement may begin, and what may stand before its marker.
SENTENCE_END = re.compile(r"[.!?。;)](?!\w)")
LEAD = re.compile(
    rf"""(?:
    [\s*_\#\[\](){{}}<>|`"'$+•·:,.{APPROVING}-] | \\\w*[\[({{]? | </?{TAG}> | \d
    | \b(?:first|second|step|so|thus|therefore|hence|overall|finally|in|conclusion|summary|my|our|the|here|is|s)\b
    | \b(?:answer|verdict|decision|revised|corrected|updated|new)\b
    )*""",
    re.IGNORECASE | re.VERBOSE,
)
# Of characters; a line that repeats its marker would else be searched from its begin every time.
LONGEST_LEAD = 200
EXAMPLE = re.compile(r"\b(?:e\.\s?g|i\.\s?e|z\.\s?B|p\.\s?ex|ex|eg|cf)\.\W*\Z", re.IGNORECASE)
# A line above that makes what follows a hypothesis, or an example or a quotation.
INTRODUCES = re.compile(
    r"""
    (?:\A|[.!?]\s) \W* (?:if|unless|had|were|suppose|supposing|otherwise)\b [^.!?]* [:,]\W*\Z
    | \A (?!.*\bmy[ ](?:answer|choice|decision|verdict|final)\b) .*
      \b(?:examples?|formats?|template|instructions?|allowed|prompt|says?|said|writes?|wrote|written|reads?|ends?|ended
      |contains?|claims?|quotes?|quoted) (?:\W+\w+){0,4} \W*:\W*\Z
    """,
    re.IGNORECASE | re.VERBOSE,
)
QUOTED_ACROSS_LINES = re.compile(r"(?<!\w)\"(?=\S)[^\"]*(?<=\S)\"(?!\w)")

# The dress of a letter. Closing signs go one at a time, so that each goes with its opening one where there is one.
LEADING = re.compile(
    rf"\A(?:[\s*_`#|$:>}}{APPROVING}]|[-•·▪+]\s+|---+|===+|</{TAG}>|\\[(\[]|\\(?:bf|rm|displaystyle)\b)+", re.IGNORECASE
)
TRAILING = re.compile(rf"(?:[\s*_`|$!。)\]}}\\{APPROVING}]|(?<!\.)\.|</{TAG}>|(?<=[\"'])[,;])\Z", re.IGNORECASE)
WRAPPED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\\(?:boxed|fbox|text\w*|math(?:bf|rm|it|sf|tt)|bold\w*|bf|underline|emph)\s*\{(.*)\}",
        rf"<{TAG}(?:\s[^<>]*)?>(.*)</{TAG}>",
        *(r'"(.*)"', r"'(.*)'", r"\((.*)\)", r"\[(.*)\]", r"\{(.*)\}", r"<(.*)>"),
        r"(?:the\s+)?(?:(?:assistant|model|better|preferred|chosen)(?:'s)?[\s_]+)*"
        r"(?:response|summary|option|answer|assistant|choice|reply|letter|model)[\s_:#*]+(.*)",
    )
)
# Of characters with their dress; what is longer is no letter, and would take long to undress.
LONGEST_ANSWER = 200
FULL_STOP = re.compile(r"(?:[.!](?:[\"'*_`)\]}$|]|</\w+>)*(?=\s)|。[\"'*_`)\]}]*)")

# The answer of the template, in its brackets or quotation marks. Without them "A or B" is an answer, and no choice.
BOTH = r"[\"'*]*(?:response\s*)?A[\"'*]*\s*(?:or|/|\|)\s*[\"'*]*(?:response\s*)?B[\"'*]*"
PLACEHOLDER = re.compile(
    rf"""[\s*_`]*(?:
    <\s*{BOTH}\s*> | \[\s*{BOTH}\s*\] | \{{\s*{BOTH}\s*\}} | "A"\s*(?:or|/|\|)\s*"B" | 'A'\s*(?:or|/|\|)\s*'B'
    | [<\[{{][^<>\[\]{{}}]*\b(?:your|letter|insert|choice|verdict)\b[^<>\[\]{{}}]*[>\]}}]
    )[\W_]*""",
    re.IGNORECASE | re.VERBOSE,
)

# Behind the answer: more of it, a correction, the other letter.
GOES_ON = re.compile(
    r"""
    [\W_]*(?:(?:or|and|vs\.?|versus)\b|[&/|]) \W*(?:(?:maybe|perhaps|possibly|also|rather|the|response|summary)\W+)* [ab]\b
    | [\W_]*(?:no|tie|draw|equal|both|neither|either)\W*(?:[,;]|$)
    | [ \t*_]*\n?[ \t*_]*(?-i:is|if|unless|but|though|only|maybe|perhaps|except)\b
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
PIECES = re.compile(r"(?<=[.!?。])\s+|\n+")
TAKES_BACK = re.compile(
    r"""
    \W*(?:(?:but|well|and|oh|no|hmm+|okay|ok)\b\W*)*
    (?: wait|hmm+|actually|correction|scratch|strike[ ]that|never[ ]?mind|disregard|ignore|oops|sorry|i[ ]apologi[sz]e
    | my[ ]mistake|thinking[ ](?:again|about[ ]it)|let[ ]me[ ](?:re|correct|check)|no[ ](?:verdict|choice|answer|decision)\b
    | (?:up)?on[ ](?:\w+[ ])?(?:reflection|thoughts?|consideration|review|reading)
    | i[ ](?:(?:now|would|must|have[ ]to|want[ ]to|need[ ]to)[ ])*
      (?: change|changed|revise|correct|retract|withdraw|take[ ](?:it|that|this|back)|reconsider|cannot|can't|refuse
      |decline|am[ ]unable|was[ ]wrong)
    | (?:(?:in[ ]truth|honestly|really),?[ ])?
      (?:it|this|that|both|they|(?:response[ ]|summary[ ])?[ab])(?:[ ]is|'s|[ ]are|'re)[ ]
      (?:\w+[ ])?(?:a[ ])?(?:tied?|draw|equal|equally|toss)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
LABELLED = re.compile(
    r"""
    \W*(?:(?:my|the|new|revised|corrected|updated|overall)[ ])*
    (?:correction|corrected|edit|update|verdict|answer|choice|decision|response|conclusion|winner|overall|result
    |judge?ment|revised)
    \W*(?:\bis\b)?\W*[:=>]\s*(?P<value>.*)
    """,
    re.IGNORECASE | re.VERBOSE,
)
UNDECIDED = re.compile(r"\W*(?:a )?(?:tie|draw|both|neither|either|equal|none)", re.IGNORECASE)


def read_choice(text: str, finish_reason: str | None) -> Choice | None:
    """The response that a judge's reply chooses.

    Args:
        text: the reply.
        finish_reason: why it ended, as the server told; "length" is a reply that was cut.

    Returns:
        The letter of the last answer. None where that is not one letter, where the reply was cut, and where the answer
        cannot be told from thinking or quotation.
    """
    reply = None if finish_reason in CUT else own_words(text)
    if reply is None:
        return None
    quoted = [found.span() for found in QUOTED_ACROSS_LINES.finditer(reply) if "\n" in found[0]]
    choice: Choice | None = None
    behind = ""
    for marker in MARKER.finditer(reply):
        sure = _states(reply, marker) and not any(start < marker.start() < end for start, end in quoted)
        answer, below = _answer(reply, marker, sure)
        if answer is None or PLACEHOLDER.fullmatch(answer):
            continue
        reading, rest = _first_sentence(answer)
        if sure:
            choice, behind = reading, f"{rest}\n{below}"
        elif reading != choice:
            # A quotation or a supposition, or else the last answer after all.
            choice = None
    return None if choice is None or _is_taken_back(choice, behind) else choice


def _states(reply: str, marker: re.Match[str]) -> bool:
    """Whether the marker begins a line or a sentence, and none that quotes or supposes."""
    start = reply.rfind("\n", 0, marker.start()) + 1
    before = reply[start : marker.start()][-LONGEST_LEAD:]
    line_above = reply[:start].rstrip().rpartition("\n")[2]
    if EXAMPLE.search(before) or (not SENTENCE_END.search(before) and INTRODUCES.search(line_above)):
        return False
    return LEAD.fullmatch(SENTENCE_END.split(before)[-1]) is not None


def _answer(reply: str, marker: re.Match[str], sure: bool) -> tuple[str | None, str]:
    """The line with the answer, None where the marker is only mentioned; and the lines below it.

    Without a separator the marker is a heading, if it stands alone, or has nothing but a letter behind it.
    """
    separator = SEPARATOR.match(reply, marker.end())
    line, *below = reply[(separator or marker).end() :].split("\n")
    alone = _bare(line) == ""
    while _bare(line) == "" and below:
        line = below.pop(0)
    is_answer = separator or (sure and (alone or _letter(line)))
    return (line if is_answer else None), "\n".join(below)


def _first_sentence(answer: str) -> tuple[Choice | None, str]:
    """The letter that is all of an answer or of its first sentence, and what stands behind that sentence."""
    whole = _letter(answer)
    stop = FULL_STOP.search(answer, 0, LONGEST_ANSWER)
    if whole or not stop:
        return whole, ""
    return _letter(answer[: stop.end()]), answer[stop.end() :]


def _letter(answer: str) -> Choice | None:
    bare = _bare(answer)
    return "A" if bare in ("A", "a") else "B" if bare in ("B", "b") else None


def _bare(text: str) -> str:
    """Without dress; as it is, if it is too long for a letter."""
    while len(text) <= LONGEST_ANSWER:
        text, previous = LEADING.sub("", text), text
        wrapped = next(filter(None, (pattern.fullmatch(text) for pattern in WRAPPED)), None)
        text = wrapped[1] if wrapped else TRAILING.sub("", text)
        if text == previous:
            break
    return text


def _is_taken_back(choice: Choice, behind: str) -> bool:
    """Whether what stands behind the answer goes on with it, corrects it or names the other letter."""
    if GOES_ON.match(behind[:LONGEST_ANSWER]):
        return True
    for piece in PIECES.split(behind):
        labelled = LABELLED.fullmatch(piece)
        value = labelled["value"] if labelled else piece
        if TAKES_BACK.match(piece) or _letter(value) not in (None, choice) or (labelled and UNDECIDED.match(value)):
            return True
    return False
