"""Contrast groups to measure with: of real texts, or of random tokens with the lengths that real ones have."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sami_nemo.queries.loaders import ASSISTANT, HUMAN
from sami_nemo.records import Constitution, ContrastGroup, Query

Task = Literal["summary", "dialogue"]


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts (constitution and query) and of responses: means, and standard deviations relative to them."""

    prompt: int
    response: int
    prompt_spread: float
    response_spread: float


# The means as they are usually given for the two data sets. The spreads are those of 150 TL;DR posts and 450 published
# summaries, and of 2,312 HH-RLHF conversations, in SmolLM2's tokens.
LENGTHS: dict[Task, Lengths] = {"summary": Lengths(550, 80, 0.21, 0.59), "dialogue": Lengths(150, 60, 0.16, 1.0)}
# Of the paper's generate.max_tokens.
LONGEST_RESPONSE = 350
PRINCIPLES: dict[Task, str] = {"summary": "summary_claude_opus", "dialogue": "dialogue_claude_opus"}


def synthetic_groups(
    task: Task, constitutions: int, count: int, vocabulary: int, seed: int, prompt_mean: int | None = None
) -> list[ContrastGroup]:
    """Random tokens in log-normal lengths. The prompts of a group have one length, but for a few tokens.

    Args:
        prompt_mean: mean length of prompts; None: the task's.
    """
    lengths, draw = LENGTHS[task], random.Random(f"{task}/{constitutions}/{seed}")

    def ids(length: float) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(max(1, round(length))))

    def log_normal(mean: float, spread: float) -> float:
        variance = math.log(1 + spread**2)
        return draw.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))

    groups = []
    for number in range(count):
        prompt = log_normal(prompt_mean or lengths.prompt, lengths.prompt_spread)
        groups.append(
            ContrastGroup(
                Query(str(number), "", task),
                tuple(Constitution(str(j), ()) for j in range(constitutions)),
                tuple(ids(prompt + draw.randint(-5, 5)) for _ in range(constitutions)),
                tuple(
                    ids(min(log_normal(lengths.response, lengths.response_spread), LONGEST_RESPONSE))
                    for _ in range(constitutions)
                ),
                ("",) * constitutions,
            )
        )
    return groups


def real_groups(task: Task, constitutions: int, count: int, model: Path, data: Path, seed: int) -> list[ContrastGroup]:
    """Real queries under constitutions of the shipped principles, with real responses of other models.

    Args:
        model: directory with the tokenizer.
        data: directory with tldr/posts.jsonl and tldr/published_responses/, and hh_rlhf/harmless-base-test.jsonl.gz.
    """
    from sami_nemo.constitution.drawing import draw_constitutions
    from sami_nemo.constitution.principles import load_principles
    from sami_nemo.prompts.tokenization import PromptTokenizer

    tokenizer = PromptTokenizer.load(model, task, chat_template=False)
    principles = load_principles(PRINCIPLES[task])
    examples = _summaries(data) if task == "summary" else _dialogues(data)
    draw = random.Random(seed)
    draw.shuffle(examples)
    # Queries have fewer answers than constitutions: the rest are other queries', which are as long.
    others = itertools.cycle(answer for _, answers in examples[count:] for answer in answers)
    groups = []
    for number, (text, answers) in enumerate(examples[:count]):
        query = Query(str(number), text, task)
        drawn = draw_constitutions(principles, constitutions, seed, query.id)
        texts = [*answers, *itertools.islice(others, constitutions)][:constitutions]
        groups.append(
            ContrastGroup(
                query,
                drawn,
                tuple(tokenizer.encode_training_prompt(constitution, query) for constitution in drawn),
                tuple(tokenizer.encode_response(answer)[:LONGEST_RESPONSE] for answer in texts),
                tuple(texts),
            )
        )
    return groups


def _summaries(data: Path) -> list[tuple[str, list[str]]]:
    posts = {row["id"]: row["post"] for row in _rows(data / "tldr" / "posts.jsonl")}
    answers: dict[int, list[str]] = {number: [] for number in posts}
    for file in sorted((data / "tldr" / "published_responses").glob("*.jsonl")):
        for row in _rows(file):
            if row["response"].strip():
                answers[row["id"]].append(row["response"].strip())
    return [(posts[number], texts) for number, texts in answers.items() if texts]


def _dialogues(data: Path) -> list[tuple[str, list[str]]]:
    examples = []
    for row in _rows(data / "hh_rlhf" / "harmless-base-test.jsonl.gz"):
        turns = {side: row[side].split(ASSISTANT) for side in ("chosen", "rejected")}
        query = turns["chosen"][0].removeprefix(HUMAN).strip()
        answers = [texts[1].split(HUMAN)[0].strip() for texts in turns.values() if len(texts) > 1]
        if query and all(answers):
            examples.append((query, list(dict.fromkeys(answers))))
    return examples


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        yield from map(json.loads, file)
