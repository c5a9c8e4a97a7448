"""The evaluation stages on tiny models: layouts against one process, and the proxy judge against full matrices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.config.files import dump_config
from sami_nemo.config.schema import Config
from sami_nemo.evaluate.metrics import write_metrics
from sami_nemo.evaluate.pmi import base_scores
from sami_nemo.records import ContrastGroup
from sami_nemo.run_dir import INSTRUCT, RunDir, partial, read_json, read_jsonl, write_json, write_jsonl, write_text
from tests.checkpoints import give
from tests.distributed.training_runs import random_groups, run_stage, tiny_config

pytestmark = pytest.mark.slow

# fp32: sums of a few hundred terms in another order.
TOLERANCE = 1e-4


def evaluation_run(config: Config, groups: list[ContrastGroup], iteration: int) -> RunDir:
    run = RunDir(config.run_dir)
    write_text(run.config, dump_config(config))
    write_jsonl(run.groups(iteration) / "evaluation.jsonl", (group.to_json() for group in groups))
    give(run, Path(config.model.path))
    if config.evaluate.instruct is not None:
        give(run, Path(config.evaluate.instruct), INSTRUCT)
    return run


def stage(run: RunDir, module: str, processes: int, iteration: int) -> None:
    status, output = run_stage(run, module, processes, iteration)
    assert status == 0, output[-4000:]


def evaluated(run: RunDir, processes: int, iteration: int) -> list[dict[str, Any]]:
    stage(run, "sami_nemo.evaluate.bound", processes, iteration)
    return read_jsonl(partial(run.evaluation(iteration)) / "groups.jsonl")


def flat(rows: list[dict[str, Any]]) -> list[float]:
    return [value for row in rows for line in row["logprobs"] for value in line]


def test_a_dense_baseline_of_a_mixture_in_its_layout(tiny_mistral: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    """sami_mixtral compares with a dense model, of which Megatron can spread no experts. Three groups on two ranks."""
    groups = random_groups(3)
    alone = evaluated(evaluation_run(tiny_config(tmp_path, "alone", tiny_mistral, 1), groups, 0), 1, 0)
    config = tiny_config(tmp_path, "mixture", tiny_mixtral, 2, expert_parallel=2)
    mixture = {
        "model": config.model.model_copy(update={"architecture": "mixtral", "num_experts": 4}),
        "evaluate": config.evaluate.model_copy(update={"instruct": str(tiny_mistral)}),
    }
    run = evaluation_run(config.model_copy(update=mixture), groups, INSTRUCT)
    assert flat(evaluated(run, 2, INSTRUCT)) == pytest.approx(flat(alone), abs=TOLERANCE)
    assert read_json(partial(run.evaluation(INSTRUCT)) / "summary.json")["mi_bound"]["n"] == 3


def test_the_proxy_scores_single_responses_as_full_matrices_do(tiny_mistral: Path, tmp_path: Path) -> None:
    """An iteration that answers what the base model answered gets the base model's scores; swapped answers do not."""
    config = tiny_config(tmp_path, "proxy", tiny_mistral, 1)
    judge = config.judge.model_copy(update={"name": "pmi", "method": "pmi"})
    config = config.model_copy(update={"judge": judge})
    groups = random_groups(4, size=3)
    run = evaluation_run(config, groups, 0)
    evaluated(run, 1, 0)
    partial(run.evaluation(0)).rename(run.evaluation(0))
    write_json(run.queries / "constitutions.json", {"desired": {"id": "1"}})
    # The last group's desired response becomes another one.
    swapped = dataclasses.replace(groups[3], response_ids=(groups[3].response_ids[0],) * 3)
    write_jsonl(run.groups(1) / "evaluation.jsonl", (group.to_json() for group in (*groups[:3], swapped)))
    stage(run, "sami_nemo.evaluate.pmi", 1, 1)

    expected = base_scores(config, run, "1")
    found = {row["query_id"]: row["pmi"] for row in read_jsonl(partial(run.judge(1)) / "scores.jsonl")}
    *same, other = [group.query.id for group in groups]
    assert [found[query] for query in same] == pytest.approx([expected[query] for query in same], abs=TOLERANCE)
    assert abs(found[other] - expected[other]) > 10 * TOLERANCE
    rate = read_json(partial(run.judge(1)) / "summary.json")["win_rate"]["base"]
    assert rate["n"] == 4
    write_metrics(config, run)
    assert read_json(run.metrics)["judge"]["proxy"]
