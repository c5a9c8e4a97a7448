"""The parser of the principle writer's replies, on the forms that models answer in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sami_nemo.constitution.reply import Pair, UnusableReply, parse_reply

NAMES = ("concise", "comprehensive")
BRIEF = "Summaries should be brief and to the point."
WHOLE = "Summaries should include all important information."
LONG = "Summaries should be lengthy and full of detail."
PART = "Summaries should leave out important information."
EXPECTED = (Pair("concise", BRIEF, LONG), Pair("comprehensive", WHOLE, PART))

FORMS = {
    "the format that was asked for": f"""
1. [Concise]: {BRIEF}
2. [Comprehensive]: {WHOLE}

1. [Not concise]: {LONG}
2. [Not comprehensive]: {PART}
""",
    "four in a row": f"1. Concise: {BRIEF}\n2. Comprehensive: {WHOLE}\n3. Not concise: {LONG}\n4. Incomprehensive: {PART}",
    "each beside its negation": f"""
1. Concise: {BRIEF}
2. Not concise: {LONG}
3. Comprehensive: {WHOLE}
4. Not comprehensive: {PART}
""",
    "headings, bold labels and prose": f"""
Sure! Here are the principles and their antitheses:

**Principles:**

1. **Conciseness:** {BRIEF}
2. **Comprehensiveness:** {WHOLE}

**Antitheses:**

1. **Verbosity:** {LONG}
2. **Incompleteness:** {PART}

Note: these can be used as a contrastive prompt, as you asked.
""",
    "markdown headings and bullets": f"""
## Principles
- Concise: {BRIEF}
- Comprehensive: {WHOLE}
## Antitheses
- Verbose: {LONG}
- Incomplete: {PART}
""",
    "each with its own antithesis": f"""
Principle 1: [Concise]: {BRIEF}
Antithesis 1: [Verbose]: {LONG}

Principle 2: [Comprehensive]: {WHOLE}
Antithesis 2: [Incomplete]: {PART}
""",
    "the label alone on its line": f"""
1) **Concise**:
   {BRIEF}
2) **Comprehensive**:
   {WHOLE}

Antitheses:

1) **Verbose**:
   {LONG}
2) **Incomplete**:
   {PART}
""",
    "broken lines, quotes and dashes": f"""
1. Concise – "{BRIEF}"
2. Comprehensive – Summaries should include
   all important information.

Antitheses
1. Verbose – "{LONG}"
2. Incomplete – Summaries should leave out
   important information.
""",
    "the other order": f"""
1. [Comprehensive]: {WHOLE}
2. [Concise]: {BRIEF}

Antitheses:
1. [Not comprehensive]: {PART}
2. [Not concise]: {LONG}
""",
    "antitheses named as such": f"""
(1) Concise: {BRIEF}
(2) Comprehensive: {WHOLE}
(3) Antithesis of concise: {LONG}
(4) Antithesis of comprehensive: {PART}
""",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    assert parse_reply(FORMS[form], NAMES) == EXPECTED


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("", "0 labelled principles"),
        ("I cannot help with that.", "0 labelled principles"),
        (f"1. Concise: {BRIEF}\n2. Comprehensive: {WHOLE}", "0 labelled antitheses"),
        (f"1. A: {BRIEF}\n2. B: {WHOLE}\n3. C: {LONG}", "3 labelled principles"),
        (f"1. A: {BRIEF}\n2. B: {WHOLE}\n3. C: {BRIEF}\n4. D: {PART}", "the same twice"),
        (f"1. Concise:\n2. Comprehensive:\n\nAntitheses:\n1. A: {LONG}\n2. B: {PART}", "0 labelled principles"),
    ],
)
def test_unusable_replies_say_what_is_wrong(reply: str, problem: str) -> None:
    with pytest.raises(UnusableReply, match=problem):
        parse_reply(reply, NAMES)


REPLIES = Path(__file__).parents[1] / "replies"
# The share of usable replies that may be asked for again.
MOST_UNREAD = 0.05


def comparable(text: str) -> str:
    """Without emphasis and runs of white space."""
    return " ".join(re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", text).split())


def read(reply: str, names: list[str], finish_reason: str | None) -> dict[str, tuple[str, str]] | None:
    try:
        pairs = parse_reply(reply, names, finish_reason)
    except UnusableReply:
        return None
    return {pair.name: (comparable(pair.principle), comparable(pair.antithesis)) for pair in pairs}


@pytest.mark.parametrize("part", ["seen", "held_out", "fresh"])
def test_readings_of_collected_replies(part: str) -> None:
    """No reading is wrong, no unusable reply is read, and few usable ones are asked for again."""
    wrong, unread, usable = [], [], 0
    for line in (REPLIES / f"writer_{part}.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        right = case["reading"] and {
            name: (comparable(pair["principle"]), comparable(pair["antithesis"]))
            for name, pair in case["reading"].items()
        }
        usable += right is not None
        reading = read(case["reply"], case["names"], case["finish_reason"])
        if reading is not None and reading != right:
            wrong.append(case["why"])
        elif reading != right:
            unread.append(case["why"])
    assert not wrong
    assert len(unread) <= MOST_UNREAD * usable, unread
