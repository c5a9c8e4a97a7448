"""The paper's prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sami_nemo.prompts.templates import Task, generation_prompt, response_prefix, training_prompt


def test_dialogue_prompts() -> None:
    training = training_prompt("dialogue", "1. Be kind.", "Why?", instruct=False)
    assert training == (
        "System: Write a response for the assistant that follows the principles in the constitution.\n\n"
        "Assistant Constitution:\n1. Be kind.\n\nHuman: Why?\n\nAssistant:"
    )
    generation = generation_prompt("dialogue", "1. Be kind.", "Why?", instruct=False)
    assert "Assistant Constitution: [insert constitution here]" in generation
    assert generation.endswith("Assistant Constitution:\n1. Be kind.\n\nHuman: Why?\n\nAssistant:")


def test_summaries_begin_with_the_post() -> None:
    generation = generation_prompt("summary", "C", "P", instruct=False)
    assert generation.endswith("### Main Task\nSummarization Constitution:\nC\n\nP\n\nSummary: The post")
    assert training_prompt("summary", "C", "P", instruct=False).endswith("P\n\nSummary:")
    assert response_prefix("summary", instruct=False) == " The post"
    assert response_prefix("summary", instruct=True) == response_prefix("dialogue", instruct=False) == ""


@pytest.mark.parametrize("task", ["dialogue", "summary"])
def test_instruct_models_see_one_prompt(task: Task) -> None:
    prompt = generation_prompt(task, "C", "Q", instruct=True)
    assert prompt == training_prompt(task, "C", "Q", instruct=True)
    assert "[insert" not in prompt and "C" in prompt and "Q" in prompt


@pytest.mark.parametrize("task", ["dialogue", "summary"])
def test_braces_survive(task: Task) -> None:
    prompt = generation_prompt(task, "use {query} and {post}", "f-strings: {constitution} {x}", instruct=False)
    assert "use {query} and {post}" in prompt and "f-strings: {constitution} {x}" in prompt


@pytest.mark.parametrize(
    "name",
    [
        "dialogue_generation",
        "dialogue_training",
        "dialogue_principle_writer",
        "dialogue_judge",
        "summary_generation",
        "summary_training",
        "summary_principle_writer",
        "summary_judge",
    ],
)
def test_words_are_the_papers(name: str, shared_data: Path) -> None:
    paper = shared_data.parent / "paper" / "sami.txt"
    if not paper.exists():
        pytest.skip("the paper's text is not here")
    folder = Path(__file__).parents[2] / "sami_nemo" / "prompts"
    words = " ".join((folder / f"{name}.txt").read_text().split())
    assert words in " ".join(paper.read_text().split())
