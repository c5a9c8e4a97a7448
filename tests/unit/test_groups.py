"""Contrast groups from responses: on-policy ids, counts that add up, and the error for too few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.base_model.random_model import train_tokenizer
from sami_nemo.config.files import parse_config
from sami_nemo.config.schema import Config
from sami_nemo.contrast import groups
from sami_nemo.errors import DataError
from sami_nemo.prompts.tokenization import PromptTokenizer
from sami_nemo.records import Constitution, ContrastGroup, Query, Response
from sami_nemo.run_dir import RunDir, commit, partial, read_json, read_jsonl, write_json, write_jsonl
from tests.checkpoints import give

TEXT = "The post says: write a response for the assistant. Summarize the post below. The post answers a human question."
CONSTITUTIONS = (Constitution("brief", ("Be brief.",)), Constitution("long", ("Be long.",)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer; the stage needs no weights."""
    directory = tmp_path_factory.mktemp("model")
    train_tokenizer([TEXT], 320).save_pretrained(directory)
    return directory


def config(model: Path, task: str = "dialogue") -> Config:
    """Iteration 1 trains on 2 groups, iteration 2 on 4."""
    return parse_config(
        {
            "name": "test",
            "recipe": "test",
            "seed": 0,
            "iterations": 2,
            "runs_dir": "runs",
            "model": {"name": "m", "architecture": "mistral", "path": str(model)},
            "data": {
                "name": "d",
                "format": "queries",
                "task": task,
                "source": "q.jsonl",
                "evaluation_queries": 2,
                "max_query_tokens": 64,
            },
            "principles": {"name": "p", "source": "file", "file": "p.yaml"},
            "judge": {"name": "none", "method": "none"},
            "generate": {"max_tokens": 8, "chat_template": False, "max_model_len": 512},
            "train": {"batch_size": 2, "batches": 1, "optimizer": "adamw", "lr": 1e-4},
            "evaluate": {},
            "logger": {},
            "hardware": {"name": "local", "accelerator": "cpu", "devices_per_node": 1},
        }
    )


def answered(tokenizer: PromptTokenizer, query_id: str, texts: Sequence[str]) -> list[Response]:
    query = Query(query_id, f"Question {query_id}?", "test")
    return [
        Response(query, constitution, text, tokenizer.encode_continuation(text), "stop", 9)
        for constitution, text in zip(CONSTITUTIONS, texts, strict=True)
    ]


@pytest.fixture
def stage(model: Path, tmp_path: Path) -> Callable[..., RunDir]:
    """Runs the stage on texts: one pair of responses per query of evaluation and training."""

    def run(evaluation: Sequence[Sequence[str]], training: Sequence[Sequence[str]], half: int = 10) -> RunDir:
        run_dir = RunDir(tmp_path / "run")
        give(run_dir, model)
        tokenizer = PromptTokenizer.load(model, "dialogue", False)
        responses = run_dir.responses(0)
        report = {}
        for name, pairs in (("evaluation", evaluation), ("training", training)):
            rows = [response for i, pair in enumerate(pairs) for response in answered(tokenizer, str(i), pair)]
            write_jsonl(responses / f"{name}.jsonl", (row.to_json() for row in rows))
            report[name] = {"queries": len(pairs), "requests": len(rows), "too_long": []}
        write_json(responses / "report.json", report)
        write_jsonl(run_dir.queries / "half_0.jsonl", ({"id": str(i), "text": "", "source": ""} for i in range(half)))
        groups.main(config(model), run_dir, 0)
        commit(run_dir.groups(0))
        return run_dir

    return run


def load(path: Path) -> list[ContrastGroup]:
    return [ContrastGroup.from_json(row) for row in read_jsonl(path)]


GOOD = (" Yes.", " No, never.")
SAME = (" Yes.", " Yes.")


def test_exactly_the_needed_groups(stage: Callable[..., RunDir]) -> None:
    training = [GOOD, (" Yes.", " I'm sorry, no."), SAME, (" Yes.", " No"), GOOD, GOOD, GOOD]
    run_dir = stage([GOOD, SAME, (" Yes", "")], training)
    assert [group.query.id for group in load(run_dir.groups(0) / "training.jsonl")] == ["0", "4"]
    assert [group.query.id for group in load(run_dir.groups(0) / "evaluation.jsonl")] == ["0", "1"]

    report: dict[str, Any] = read_json(run_dir.groups(0) / "filters.json")
    counts = report["training"]
    assert (counts["queries"], counts["groups"], counts["kept"]) == (7, 7, 4)
    assert (counts["needed"], counts["unused"], counts["too_long"]) == (2, 2, 0)
    expected = {"empty": 0, "human_tail": 0, "evasive": 1, "placeholder": 0, "truncated": 1, "identical": 1}
    assert counts["dropped_groups"] == expected
    assert counts["dropped_responses"] == {**expected, "identical": 2}
    assert report["evaluation"]["kept"] == 2
    assert report["evaluation"]["dropped_groups"]["empty"] == 1
    assert "needed" not in report["evaluation"]


def test_responses_keep_the_sampled_ids(stage: Callable[..., RunDir], model: Path) -> None:
    tokenizer = PromptTokenizer.load(model, "dialogue", False)
    tail = " Yes.\n\nHuman: And then?"
    run_dir = stage([GOOD], [(tail, " No, never.\n"), GOOD])
    group = load(run_dir.groups(0) / "training.jsonl")[0]
    assert group.responses == ("Yes.", "No, never.")
    # White space at the end was sampled, and stays; only a tail is cut.
    assert group.response_ids[1] == tokenizer.encode_continuation(" No, never.\n")
    sampled = tokenizer.encode_continuation(tail)
    assert sampled[: len(group.response_ids[0])] == group.response_ids[0]
    assert tokenizer.decode(group.response_ids[0]) == " Yes."
    for prompt_ids, constitution in zip(group.prompt_ids, CONSTITUTIONS, strict=True):
        assert prompt_ids == tokenizer.encode_training_prompt(constitution, group.query)
    assert read_json(run_dir.groups(0) / "filters.json")["training"]["human_tails_cut"] == 1


def test_summaries_begin_with_the_prefix(model: Path) -> None:
    tokenizer = PromptTokenizer.load(model, "summary", False)
    built, _ = groups.build_groups(
        answered(tokenizer, "0", (" is short.\nHuman: Thanks.", "'s author is sad.")),
        groups.screen_evaluation,
        tokenizer,
    )
    assert built[0].responses == ("The post is short.", "The post's author is sad.")
    prefix = tokenizer.response_prefix_ids
    assert all(ids[: len(prefix)] == prefix for ids in built[0].response_ids)


def test_too_few_groups_says_how_many_more(stage: Callable[..., RunDir]) -> None:
    """One of 4 survives, 2 are needed: at that rate 4 more queries, 8 in all, which is 4.0 times 2."""
    training = [GOOD, SAME, SAME, (" Yes.", " [insert answer here].")]
    with pytest.raises(DataError) as caught:
        stage([GOOD], training, half=10)
    message = str(caught.value)
    assert "training groups of iteration 1 = 1: 2 are needed, 1 of 4 sampled queries survived" in message
    assert "identical 2, placeholder 1" in message
    assert "4 more queries are needed" in message
    assert "generate.oversample=4.0" in message


def test_too_few_groups_in_a_half_that_is_used_up(stage: Callable[..., RunDir]) -> None:
    with pytest.raises(DataError, match=r"half 0 has only 4 queries: give data\.source more"):
        stage([GOOD], [GOOD, SAME, SAME, SAME], half=4)


def test_no_survivor_has_no_rate(stage: Callable[..., RunDir]) -> None:
    with pytest.raises(DataError, match="none survived"):
        stage([GOOD], [SAME])


def test_evaluation_without_groups(stage: Callable[..., RunDir]) -> None:
    with pytest.raises(DataError, match=r"no evaluation query has responses .* \(empty 1\)"):
        stage([("", " Yes.")], [GOOD, GOOD])


def test_the_last_iteration_trains_nothing_more(model: Path, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    give(run_dir, model)
    tokenizer = PromptTokenizer.load(model, "dialogue", False)
    rows = [response.to_json() for response in answered(tokenizer, "0", GOOD)]
    write_jsonl(run_dir.responses(2) / "evaluation.jsonl", rows)
    write_json(run_dir.responses(2) / "report.json", {"evaluation": {"queries": 1, "requests": 2, "too_long": []}})
    groups.main(config(model), run_dir, 2)
    assert sorted(path.name for path in partial(run_dir.groups(2)).iterdir()) == ["evaluation.jsonl", "filters.json"]
