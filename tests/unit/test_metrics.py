"""metrics.json against values by hand and against the objective."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sami_nemo.config.compose import compose
from sami_nemo.evaluate.mean_sem import mean_sem
from sami_nemo.evaluate.metrics import bound, summarise, write_metrics
from sami_nemo.objective import mutual_information_bound
from sami_nemo.run_dir import RunDir, read_json, write_json


def test_mean_and_standard_error() -> None:
    # Squared deviations of 1, 2, 6 from 3 are 4, 1, 9: variance 14 / 2 = 7.
    assert mean_sem([1, 2, 6]) == {"mean": 3.0, "sem": pytest.approx(math.sqrt(7 / 3)), "n": 3}
    assert mean_sem([4.0]) == {"mean": 4.0, "sem": 0.0, "n": 1}


@pytest.mark.parametrize("size", [2, 4])
def test_bound_equals_the_objectives(size: int) -> None:
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    assert bound(matrix.tolist()) == pytest.approx(mutual_information_bound(matrix).item(), abs=1e-12)


def test_summary() -> None:
    rows = [
        {"query_id": "a", "source": "x", "logprobs": [[0.0, 0.0], [0.0, 0.0]], "response_tokens": [1, 3]},
        {"query_id": "b", "source": "x", "logprobs": [[0.0, -50.0], [-50.0, 0.0]], "response_tokens": [2, 2]},
    ]
    summary = summarise(1, rows)
    assert summary["mi_bound"]["mean"] == pytest.approx(math.log(2) / 2)
    assert summary["mi_bound"]["max"] == pytest.approx(math.log(2))
    assert summary["response_tokens"] == {"mean": 2.0, "sem": pytest.approx(math.sqrt(2 / 3 / 4)), "n": 4}


def test_finished_stages_are_listed_with_their_times(tmp_path: Path) -> None:
    """In the order in which they ended; those of a run that was begun before times were split have none of the parts."""
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path}"])
    run = RunDir(config.run_dir)
    write_metrics(config, run)
    assert read_json(run.metrics)["stages"] == []

    phases = {"start_up": 14.0, "work": 46.0, "saving": 4.0}
    train = {"stage": "train_1", "wall_seconds": 64.0, "phases": phases, "finished": "2026-01-01T00:02:00+0000"}
    write_json(run.manifest("train_1"), train)
    for name in ("queries", "merge_0"):
        # Within a second.
        write_json(run.manifest(name), {"stage": name, "wall_seconds": 1.5, "finished": "2026-01-01T00:01:00+0000"})
    write_json(run.manifest("sample_1.attempt"), {"made_from": {}})
    write_metrics(config, run)
    assert read_json(run.metrics)["stages"] == [
        {"stage": "queries", "seconds": 1.5},
        {"stage": "merge_0", "seconds": 1.5},
        {"stage": "train_1", "seconds": 64.0, **phases},
    ]
