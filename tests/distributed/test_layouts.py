"""The shared-prefix layout gives the plain layout's log-probs and gradients, in every parallel layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sami_nemo.run_dir import read_json
from tests.distributed import layouts_worker
from tests.distributed.ranks import run_ranks, tail

pytestmark = pytest.mark.slow

Cases = dict[str, dict[str, Any]]

ONE: Cases = {
    "two constitutions": {},
    "three constitutions": {"size": 3},
    "four constitutions": {"size": 4},
    "activation checkpointing": {"activation_checkpointing": True},
}
TWO_DENSE: Cases = {
    "tensor parallel": {"tensor_parallel": 2},
    "tensor and sequence parallel": {"tensor_parallel": 2, "sequence_parallel": True, "size": 3},
    "pipeline parallel": {"pipeline_parallel": 2},
    "pipeline parallel, checkpointing": {"pipeline_parallel": 2, "activation_checkpointing": True},
}
TWO_MOE: Cases = {
    "expert parallel, all-to-all": {"expert_parallel": 2, "size": 3},
    "expert parallel, all-gather": {"expert_parallel": 2, "moe_dispatcher": "allgather"},
    "tensor and sequence parallel": {"tensor_parallel": 2, "sequence_parallel": True},
    "pipeline parallel": {"pipeline_parallel": 2},
}
# Tensor and expert parallelism together exchange tensors of unequal size, which gloo cannot.
FOUR_MOE: Cases = {
    "pipeline and expert parallel": {"pipeline_parallel": 2, "expert_parallel": 2, "size": 3},
}


def compare(processes: int, checkpoint: Path, folder: Path, cases: Cases) -> dict[str, dict[str, float]]:
    log = folder / "ranks.log"
    assert run_ranks(processes, log, layouts_worker.compare_on_cpu, checkpoint, folder, cases) == 0, tail(log)
    return read_json(folder / "report.json")


def check(processes: int, checkpoint: Path, folder: Path, cases: Cases) -> None:
    reports = compare(processes, checkpoint, folder, cases)
    assert reports.keys() == cases.keys()
    for name, apart in reports.items():
        assert apart["logprobs"] < 1e-5, name
        assert 0 < apart["gradients"] < 1e-4, name


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_one_process(kind: str, tiny_mistral: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    check(1, tiny_mistral if kind == "dense" else tiny_mixtral, tmp_path, ONE)


def test_two_processes_dense(tiny_mistral: Path, tmp_path: Path) -> None:
    check(2, tiny_mistral, tmp_path, TWO_DENSE)


def test_two_processes_moe(tiny_mixtral: Path, tmp_path: Path) -> None:
    check(2, tiny_mixtral, tmp_path, TWO_MOE)


def test_four_processes_moe(tiny_mixtral: Path, tmp_path: Path) -> None:
    check(4, tiny_mixtral, tmp_path, FOUR_MOE)


def test_in_bf16(tiny_mistral: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    """Sums in another order round differently, and eight bits are not many: a single token may be further apart."""
    for checkpoint in (tiny_mistral, tiny_mixtral):
        (apart,) = compare(1, checkpoint, tmp_path, {"bf16": {"precision": "bf16", "size": 3}}).values()
        assert 0 < apart["mean"] < 1e-2
