"""Filters of sampled responses: each reason on texts as models write them, and what must pass."""

from __future__ import annotations

import pytest

from sami_nemo.contrast.filters import Reason, cut_human_tail, screen_evaluation, screen_training

GOOD = "Knead the dough for ten minutes."
OTHER = "Do not knead it at all!"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.EMPTY),
        (" \n", Reason.EMPTY),
        ("\nHuman: And then?\nAssistant: Bake it.", Reason.HUMAN_TAIL),
        ("I'm sorry, I can't provide that address.", Reason.EVASIVE),
        ("I’m sorry, but I cannot help.", Reason.EVASIVE),
        (" I am very sorry to hear that.", Reason.EVASIVE),
        ("Sorry, no.", Reason.EVASIVE),
        ("I apologize, but I will not.", Reason.EVASIVE),
        ("I must apologise first.", Reason.EVASIVE),
        ("My apologies, this is not possible.", Reason.EVASIVE),
        ("Dear [insert name here], thank you.", Reason.PLACEHOLDER),
        ("Sincerely,\n[Your Name].", Reason.PLACEHOLDER),
        ("Knead the dough for ten", Reason.TRUNCATED),
        ("You need:\n- flour\n- water", Reason.TRUNCATED),
    ],
)
def test_reasons_to_drop(text: str, reason: Reason) -> None:
    screened = screen_training([GOOD, text], require_full_stop=True)
    assert screened.reasons == (None, reason)
    assert screened.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        'She said, "knead it."',
        "Is it ready? (It is.)",
        "Wait…",
        "是的。",
        "You should say sorry to her.",
        "A sorry state of affairs.",
        "I can't help with that, but a doctor can.",
        "Studies agree [citation needed]. A woman [24 F] asked. See [the guide](https://example.org).",
        "Humans: they knead.",
    ],
)
def test_sound_responses_stay(text: str) -> None:
    assert screen_training([OTHER, text], require_full_stop=True).reasons == (None, None)


def test_every_response_is_checked() -> None:
    """Checking the first response alone would keep each of these groups."""
    for bad in ("I'm sorry, no.", "It ends without", ""):
        for position in range(3):
            texts = [GOOD, OTHER, "Ask a baker."]
            texts[position] = bad
            assert screen_training(texts, require_full_stop=True).reason is not None


def test_full_stop_is_optional() -> None:
    assert screen_training(["flour, water", OTHER], require_full_stop=False).reason is None


def test_tail_is_cut_before_the_other_filters_look() -> None:
    screened = screen_training([f" {GOOD}\n\nHuman: Thanks, [insert name]", OTHER], require_full_stop=True)
    assert screened.texts == (GOOD, OTHER)
    assert screened.cut == (True, False)
    assert screened.reason is None
    unfinished = screen_training([f"{GOOD} And\n\nHuman: Thanks.", OTHER], require_full_stop=True)
    assert unfinished.reason == Reason.TRUNCATED


def test_cut_at_the_first_turn() -> None:
    assert cut_human_tail("One. Human: Two. Human: Three.") == "One."
    assert cut_human_tail(" no turn ") == "no turn"


def test_identical_responses_drop_the_group() -> None:
    """Compared after trimming: the same answer with another tail is the same answer."""
    screened = screen_training([GOOD, OTHER, f"{GOOD}\nHuman: Thanks."], require_full_stop=True)
    assert screened.reasons == (Reason.IDENTICAL, None, Reason.IDENTICAL)
    assert screened.reason == Reason.IDENTICAL


def test_a_group_has_one_reason() -> None:
    screened = screen_training(["cut off", "I'm sorry, no.", GOOD], require_full_stop=True)
    assert screened.reasons == (Reason.TRUNCATED, Reason.EVASIVE, None)
    assert screened.reason == Reason.EVASIVE


def test_evaluation_drops_only_what_is_absent() -> None:
    texts = ["I'm sorry, no", "I'm sorry, no", "Dear [insert name]\nHuman: Hm."]
    screened = screen_evaluation(texts)
    assert screened.reason is None
    assert screened.texts == ("I'm sorry, no", "I'm sorry, no", "Dear [insert name]")
    assert screen_evaluation([GOOD, "Human: Hm."]).reason == Reason.HUMAN_TAIL
    assert screen_evaluation([GOOD, " "]).reason == Reason.EMPTY
