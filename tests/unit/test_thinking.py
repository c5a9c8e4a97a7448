"""Replies without their thinking, in the tags that models use."""

from __future__ import annotations

import pytest

from sami_nemo.thinking import without_thinking

CLOSED = {
    "think": "<think>\nB?\n</think>\n\nA",
    "upper case": "<THINK>B?</THINK>A",
    "blanks and attributes": '<think duration="3s">B?</ think >A',
    "thinking": "<thinking>B?</thinking>\nA",
    "thought": "<thought>B?</thought>\nA",
    "reasoning": "<reasoning>B?</reasoning>\nA",
    "a prefix": "<seed:think>B?</seed:think>A",
    "a suffix": "<ifm|think_fast>B?</ifm|think_fast>A",
    "square brackets": "[THINK]B?[/THINK]A",
    "triangles": "◁think▷B?◁/think▷A",
    "begin and end": "<|begin_of_thought|>B?<|end_of_thought|>A",
    "start and end": "<|START_THINKING|>B?<|END_THINKING|>A",
    "Gemma's channel": "<|channel>thought\nB?<channel|>A",
    "prose": "Here is my thought process: B?\n\nHere is my response:\nA",
    "only the end": "B?\nB!\n</think>\nA",
    "only the end, in brackets": "B?[/THINK]A",
    "carriage returns": "<think>\r\nB?\r\n</think>\r\nA",
    "two blocks": "<think>B?</think>\n<think>B!</think>\nA",
    "a block behind the answer": "A\n<think>B?</think>",
    "a block in a block": "<think>B? <think>B!</think> B?</think>A",
    "a tag that the thinking quotes": '<think>Shall I write "</think>" or `<think>`? B!</think>A',
    "a tag that the thinking mentions": "<think>I need the <think> tag and then B.</think>A",
    "channels": "<|channel|>analysis<|message|>B?<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>",
    "three channels": "<|start|>assistant<|channel|>analysis<|message|>B?<|end|><|start|>assistant<|channel|>commentary "
    "to=functions.f <|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>A",
    "channels that begin within": "B?<|end|><|start|>assistant<|channel|>final<|message|>A",
    "a channel behind the answer": "<|channel|>final<|message|>A<|end|><|channel|>analysis<|message|>B?<|end|>",
    "channels without tokens": "analysisWe weigh B.assistantfinalA",
    "three channels without tokens": "analysisB?assistantcommentary to=f json{}assistantanalysisB!assistantfinalA",
}


@pytest.mark.parametrize("reply", CLOSED.values(), ids=CLOSED.keys())
def test_thinking_is_left_out(reply: str) -> None:
    assert without_thinking(reply) == "A"


@pytest.mark.parametrize(
    "reply",
    [
        "<think>\nA",
        "<think>\nA\n<think>B</think>",
        "A\n<think>\nB",
        "Sure. <think>Is it A?",
        "Sure. <thinking>\nIs it A?",
        "[THINK]A",
        "◁think▷A",
        "<reasoning>A",
        "<|begin_of_thought|>A",
        "<|channel|>analysis<|message|>A",
        "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>commentary<|message|>B",
        "<|channel|>final<|message|>A<|end|><|start|>assistant<|channel|>analysis<|message|>B",
        "analysisWe weigh A.",
        '<think>It ends with "</think>", so A',
        "<think>I will close </think> and then say A",
    ],
)
def test_thinking_that_never_ends_leaves_no_answer(reply: str) -> None:
    assert without_thinking(reply) is None


@pytest.mark.parametrize("reply", ["<think>A</think>", "A</think>", "<|channel|>analysis<|message|>A<|end|>", ""])
def test_a_reply_may_be_thinking_alone(reply: str) -> None:
    assert without_thinking(reply) == ""


@pytest.mark.parametrize(
    "reply",
    [
        "Response A shows its `<think>` tag to the user. B",
        'Response A begins with "<think>I hate this", B does not.',
        "Response A begins with “<think>I hate this</think>”, B does not.",
        "Response A has a '</think>' at its end. B",
        "Response A says:\n> <think>\n> I hate this\nB",
        "Response A shows its <think> tag to the user. B",
        "Response A leaks a closing tag (</think>), B does not.",
        "The markers <|channel|>analysis<|message|> and <|end|> stand in A. B",
        "analysis: A is better",
        "analysis\nA is better",
        "Thinking about it, A is better <thinking and explanation>",
        "It ended.<|end|>",
    ],
)
def test_tags_that_are_quoted_or_mentioned_are_no_thinking(reply: str) -> None:
    assert without_thinking(reply) == reply
