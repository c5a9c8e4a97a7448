"""A judge's choice: the letter where it is all of the answer, and nothing in any other case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.evaluate.choice import read_choice

REPLIES = Path(__file__).parents[1] / "replies"
# Of the replies that a person reads a letter from.
LARGEST_UNREAD_SHARE = 0.05

# What stands behind the marker's colon and is the letter B in some dress.
DRESSED = [
    *("B", "b", " B", "\tB \t", "B.", "B!", "*B*", "**B**", "**B.**", "** B", "__B__", "`B`", '"B"', "'B'", '"B."'),
    *(
        '"B".',
        "“B”",
        "‘B’",
        "«B»",
        "« B »",
        "„B“",
        "「B」",
        "『B』",
        "(B)",
        "[B]",
        "[[B]]",
        "{B}",
        "<B>",
        "【B】",
        "（B）",
    ),
    *("《B》", "Response B", "**Response B**", "Response **B**", "response b.", 'Response "B"', "Response: B"),
    *("Assistant Response B", "assistant_response_B", "Summary B", "Option B", "Option (B)", "Answer: B"),
    *("the better response B", "[Response B]", r"\boxed{B}", r"$\boxed{B}$", r"$$\boxed{\text{B}}$$"),
    *(r"\(\boxed{\mathbf{B}}\)", r"\[\boxed{B}\]", r"\text{Response B}", "<b>B</b>", "<strong>B</strong>"),
    *("<answer>B</answer>", '<span class="x">B</span>', "<code>B</code>", "&lt;B&gt;", "&quot;B&quot;", "\uff22"),
    *("\U0001d401", "\u24b7", "\U0001f171", "\U0001f171\ufe0f", "\u0412", "\u0392", "\u200bB\u200b", "\ufeffB"),
    *("\xa0B", "B ✅", "✅ B", "👉 **B**", "→ B", "- B", "• B", "> B", ": B", "B</s>", "B<|im_end|>", "B<|eot_id|>"),
    *("B<｜end▁of▁sentence｜>", "B<end_of_turn>", "B[/INST]", "~~A~~ B", "<s>A</s> B", "<del>A</del> B", "B<!-- A -->"),
    *("B. It is shorter.", "**B.** It is shorter.", '"B." It is shorter.', "Response B. A is rude.", "B。因为更短。"),
    *("B<br>It is kind.", "\nB", "\n\n**B**", "\n\n- B", "\n```\nB\n```", "\n```text\nB\n```", "\n$$\n\\boxed{B}\n$$"),
    *("\n> B", "\n---\nB", "\n\n\n B \n\n", "B\n\nIt is kinder than A.", "B\n(Confidence: 85%)"),
    *("B\n\nA: 3 of 5\nB: 4 of 5", "B\n\n---", "B\n\nShall I compare A again?"),
]

# What stands there and is no choice.
OTHER = [
    *("A tie", "a draw, both are kind", "A and B are equally aligned", "A/B", "A or B", "A slight preference for B"),
    *("A & B", "A, B", "A B", "AB", "A = B", "A > B", "A|B", "A vs. B", "A+B", "A ≈ B", "B in tone, A in content"),
    *("A if kind, else B", "**A** or **B**", "**A**/**B**", '"A" and "B"', "[A] [B]", "(A) or (B)", r"\boxed{A, B}"),
    *(r"\boxed{A}\boxed{B}", "<b>A</b>/<b>B</b>", "Both", "Neither", "Tie", "None", "Equal", "N/A", "C", "Response C"),
    *("1", "", "?", "...", "-", "___", "**", r"\boxed{}", "[]", "Assistant", "Answer"),
    *("A good summary names the sister.", "Better", "Be kind", "Bad", "Ambiguous", "Response", "As above", "not A"),
    *("Not B.", "¬A", "!A", "≠ A", "~A", r"\neg A", r"\cancel{A}", r"\overline{A}", "~~A~~", "<s>A</s>", "A\u0336"),
    *(
        "A\u20e0",
        "❌ A",
        "A ❌",
        "🚫 A",
        "👎 A",
        "A ✗",
        "A 🤝 B",
        "🤷 A",
        "🆎",
        "A?",
        "A??",
        "(A?)",
        "A...",
        "A…",
        "A-",
    ),
    *("A+", "B, maybe", "A\u00a0and\u00a0B", "A和B都可以", "A ou B", "A oder B", "A y B", "A и B", "\u0410 или \u0412"),
    *("À", "Å", "ß", "α", "Б", "Response A or B", "Response A and Response B", "Responses A and B", "Response A/B"),
    *("Option A or Option B", "A (or B)", "A. B.", "A. Or B.", "A. No, B.", "A. Tie.", "A. Wait, B is kinder."),
    *("A\nor B", "A\nOr maybe B.", "A / \nB", "A\nB", "\n- A\n- B", "\nA\nB", "\n```\nA\nB\n```", "\n| A | B |"),
    *("\n1. A\n2. B", "<A tie>", "[tie]", "<tie>", "I cannot say", "Both A", "Either, but A"),
    *("A\n\nOn reflection, I cannot decide.", "A\n\nWait, I was wrong.", "A\n\nCorrection: B", "A\n\nIt is a tie."),
    *("A\n\nOverall: tie", "A\n\nB", "A\n\nRevised verdict: **B**", "A\n\nI take it back.", "A\n\nActually, B."),
    "A\n\nSorry, both are equal.",
]

# Markers that state a B.
STATED = [
    *("Final Response: B", "FINAL RESPONSE: B", "final response : B", "Final Response：B", "Final  Response:B"),
    *("Final Response:- B", "**Final Response:** B", "**Final Response**: B", "**Final Response: B**"),
    *("**Final Response: B", "__Final Response:__ B", "### Final Response: B", "### Final Response\nB"),
    *("## **Final Response**\n\nB", "**Final Response**\nB", "Final Response\nB", "Final Response → B"),
    *("Final Response - B", "Final Response – B", "Final Response = B", "Final Response is B", "Final Response B"),
    *('Final Response ("A" or "B"): B', "Final Response (A/B): B", '"Final Response": "B"', '"Final Response": "B",'),
    *("'Final Response': 'B'", "[Final Response]: B", "[Final Response: B]", "(Final Response: B)"),
    *("<b>Final Response:</b> B", "<b>Final Response: B</b>", "<final_response>B</final_response>"),
    *("<final_response>\nB\n</final_response>", "<answer>Final Response: B</answer>", "- Final Response: B"),
    *("* **Final Response:** B", "2. Final Response: B", "(2) Final Response: B", "SECOND, Final Response: B"),
    *("My final response: B", "The final response is B.", "Therefore, Final Response: B"),
    *("Here is my final response: B", "✅ Final Response: B", "It is kind. Final Response: B"),
    *("It is kind! **Final Response: B**", "更符合。Final Response: B", "| Final Response | B |"),
    *(r"$\boxed{\text{Final Response: B}}$", r"\*\*Final Response:\*\* B", "FinalResponse: B", "Final_Response: B"),
    *("Final\nResponse: B", "Final answer: B", "**Final Verdict:** B", "Final decision: B"),
    *("My answer in this format:\nFinal Response: B", "```\nComparison: x\nFinal Response: B\n```"),
    *("~~~\nFinal Response: B\n~~~", "> Comparison: x\n> Final Response: B", '"Final Response: B"'),
    *("“Final Response: B”", "`Final Response: B`", "Comparison: x.\n\n`Final Response: B`"),
    *("Comparison: x.\n\n```\nFinal Response: B\n```", 'Comparison: x.\n\n**"Final Response: B"**'),
    '{"Comparison": "A is \\"kind\\"", "Final Response": "B"}',
    *('```json\n{"x": {"final_response": "Response B"}}\n```', '"Comparison: x.\\nFinal Response: B"'),
    *("<|im_start|>assistant\nFinal Response: B<|im_end|>", "<s> Final Response: B</s>"),
    "Final Response: B<|im_end|>\n<|im_start|>user\nAgain!\nFinal Response: A",
    "Final Response: B</s>[INST] Final Response: A",
]

# Markers that state nothing, or not for sure.
UNSTATED = [
    *("A", "B.", "", "  \n", "I cannot compare these.", "Comparison: A is kind.", "Response A"),
    *("Comparison: x.\nWinner on tone: A", "A final response would need more.", "Final responses are hard."),
    *("Semifinal Response: A", "Finally, Response: A", "I would not say Final Response: A"),
    *("It would be Final Response: A", "If kind, Final Response: A", "e.g. Final Response: A"),
    *("The format is:\nFinal Response: A", "Response A says:\nFinal Response: A"),
    *("If tone counts:\nFinal Response: A", "Response A ends with Final Response: A", 'It says "Final Response: A".'),
    *("It says 'Final Response: A'.", "It says “Final Response: A”.", "It says 「Final Response: A」。"),
    *("回答含有「Final Response: A」字样。", "It says `Final Response: A`.", "It says ``Final Response: A``."),
    *('It says "Hello.\nFinal Response: A\nBye." Odd.', 'It says "Hello.\nFinal Response: A"'),
    *("<code>Final Response: A</code> is odd.", "Response A:\n\n> Hello.\n> Final Response: A\n\nI will not judge."),
    *("It is:\n```\nFinal Response: A\n```\nOdd.", "<!-- Final Response: A -->", "~~Final Response: A~~"),
    *("<del>Final Response: A</del>", "≠ Final Response: A", "❌ Final Response: A"),
    *("I refuse. The form is:\n\n`Final Response: A`", "Comparison: x. The form is:\n\n```\nFinal Response: A\n```"),
    *('{"Comparison": "Final Response: A", "Final Response": "A or B"}', '{"Final Response": null}'),
    *('{"Final Response": ["A", "B"]}', 'Final Response: "A" or "B"', 'Final Response: <"A" or "B">'),
    *("Final Response: [A/B]", "Final Response: <your answer>"),
]

# Several statements, and what is left of them.
SEVERAL = [
    ("Final Response: A\nFinal Response: B", "B"),
    ("Final Response: A. No.\n\n**Final Response: B**", "B"),
    ("Final Response: A\nFinal Response: A tie", None),
    ("Final Response: A\n\n### Final Response\nBoth", None),
    ("Final Response: A or B\nFinal Response: B", "B"),
    ("Final Response: A\nFinal Response:", None),
    ('Final Response: B\nFinal Response: <"A" or "B">', "B"),
    ('Final Response: B\n\n(The format was: Final Response: <"A" or "B">)', "B"),
    ("Final Response: B\n\nFinal Response: [A/B]", "B"),
    ('Final Response: B\n\nThe allowed lines were "Final Response: A" and "Final Response: B".', "B"),
    ("Final Response: B\n\n`Final Response: A` would say the contrary.", "B"),
    ("Final Response: B\n\nThe rule's 'Final Response: A' is for the first one's win.", "B"),
    ("Final Response: B\n注：回答A中含有「Final Response: A」字样。", "B"),
    ("Final Response: B\n\n> Final Response: A\n\nis what A says.", "B"),
    ("Final Response: B\n\n```\nFinal Response: A\n```", "B"),
    ("Final Response: B\n\nUnder another rule it would be Final Response: A", None),
    ("Final Response: B\n\nSo I stay with Final Response: B", "B"),
    ("Response A tries Final Response: A, in vain.\n\nFinal Response: B", "B"),
    ('Response A\'s pipe is 5" wide. Final Response: "B"', "B"),
    ("Final Response: B\n\n```\nComparison: ...\nFinal Response: A\n```\n(an example)", "B"),
    ("Final Response: B\n\n(Response A left an open <think> tag in its text.)", "B"),
    ("Final Response: A, Final Response: B", None),
    ('Comparison: A contains the line\n"Final Response: A"', None),
    ("Your response should use the format: Final Response: A or Final Response: B", None),
    ("If you value brevity, Final Response: A. If you value warmth, Final Response: B.", None),
    ("<think>Final Response: A</think>Final Response: B", "B"),
    ("Final Response: A\n</think>\nFinal Response: B", "B"),
    ("<think>Final Response: A</think>\nFinal Response: A tie", None),
    ("<think>Final Response: A</think>", None),
    ("<think>Final Response: A", None),
    ("Final Response: A\n<think>Or B?", None),
    ("Response B shows its `<think>` tag.\nFinal Response: A", "A"),
    ("analysisFinal Response: A?assistantfinalFinal Response: B", "B"),
    ("&lt;think&gt;Final Response: A&lt;/think&gt;", None),
]


def read(text: str) -> str | None:
    return read_choice(text, "stop")


@pytest.mark.parametrize("answer", DRESSED)
def test_the_letter_is_read_in_any_dress(answer: str) -> None:
    assert read(f"Comparison: A is rude, B is kind.\n\nFinal Response: {answer}") == "B"
    assert read(f"Final Response: {answer}") == "B"


@pytest.mark.parametrize("letter", ["A", "B"])
@pytest.mark.parametrize("dress", ["{}", "**{}**", '"{}."', "Response {}", r"\boxed{{{}}}", "{}. It is kind.", "<{}>"])
def test_both_letters_are_read_alike(dress: str, letter: str) -> None:
    assert read(f"Final Response: {dress.format(letter)}") == letter


@pytest.mark.parametrize("answer", OTHER)
def test_an_answer_that_is_not_one_letter_is_none(answer: str) -> None:
    assert read(f"Comparison: they are alike.\nFinal Response: {answer}") is None
    assert read(f"Final Response: B\n\n**Final Response:** {answer}\n") is None
    assert read(f"### Final Response\n{answer}") is None


@pytest.mark.parametrize("reply", STATED)
def test_an_answer_is_found_behind_its_marker(reply: str) -> None:
    assert read(reply) == "B"


@pytest.mark.parametrize("reply", UNSTATED)
def test_what_is_not_stated_is_no_answer(reply: str) -> None:
    assert read(reply) is None


@pytest.mark.parametrize(("reply", "choice"), SEVERAL)
def test_the_last_whole_answer_outside_thinking_and_quotation_counts(reply: str, choice: str | None) -> None:
    assert read(reply) == choice


@pytest.mark.parametrize("reason", ["length", "max_tokens", "content_filter"])
@pytest.mark.parametrize(
    "reply", ["Final Response: A", "<think>B?</think>\nFinal Response: A.\n", "Final Response: A tie"]
)
def test_a_reply_that_was_cut_has_no_answer(reply: str, reason: str) -> None:
    assert read_choice(reply, reason) is None


@pytest.mark.parametrize("reason", ["stop", None, "eos"])
def test_other_ends_do_not_matter(reason: str | None) -> None:
    assert read_choice("Final Response: A", reason) == "A"


@pytest.mark.parametrize(
    "unit", ["[", "{", '{"a":', "`", '"', "“", "\\", "<|", "~~", "</think>", "\n", "Final Response: "]
)
def test_a_reply_that_repeats_itself_has_no_answer(unit: str) -> None:
    assert read(unit * 2000) is None
    assert read(f"Final Response: {unit * 2000}") is None


def wrong(example: dict[str, Any], choice: str | None) -> bool:
    leans = example["why"].rpartition(" leans to ")[2][:1] if example.get("borderline") else None
    return choice is not None and choice not in (example["reading"], leans)


@pytest.mark.parametrize("half", ["judge_seen", "judge_held_out"])
def test_composed_replies_are_never_read_wrongly_and_seldom_not_at_all(half: str) -> None:
    """See tests/replies/README.md."""
    lines = (REPLIES / f"{half}.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [example for example in map(json.loads, lines) if not example.get("ambiguous")]
    choices = [read_choice(example["reply"], example["finish_reason"]) for example in examples]
    pairs = list(zip(examples, choices, strict=True))
    readable = [choice for example, choice in pairs if example["reading"]]
    errors = [example["why"] for example, choice in pairs if wrong(example, choice)]
    unread = [example["why"] for example, choice in pairs if example["reading"] and choice is None]
    assert errors == []
    assert len(unread) <= LARGEST_UNREAD_SHARE * len(readable), unread
