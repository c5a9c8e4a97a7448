"""Every parallel layout trains the same model as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sami_nemo.run_dir import RunDir
from tests.distributed.training_runs import finish, make_run, random_groups, run_stage, start, tiny_config, train

pytestmark = pytest.mark.slow

LOSS_TOLERANCE = 1e-4
# Of the change of each weight matrix after two steps, as a share of the change itself. Sums in another order round
# differently, and Adam magnifies that where a gradient is almost zero: measured up to 0.001.
UPDATE_TOLERANCE = 5e-3

DENSE: dict[str, dict[str, Any]] = {
    "tensor parallel": {"tensor_parallel": 2},
    "tensor and sequence parallel": {"tensor_parallel": 2, "sequence_parallel": True},
    "pipeline parallel": {"pipeline_parallel": 2},
    "data parallel, distributed optimizer": {},
    "data parallel": {"distributed_optimizer": False},
}
MOE: dict[str, dict[str, Any]] = {
    "expert parallel, all-to-all": {"expert_parallel": 2},
    "expert parallel, all-gather": {"expert_parallel": 2, "moe_dispatcher": "allgather"},
    "tensor and sequence parallel": {"tensor_parallel": 2, "sequence_parallel": True},
}


def in_fp32(checkpoint: Path, directory: Path) -> Path:
    """The same model with fp32 weights, so that the export does not round."""
    AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).save_pretrained(directory)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(directory)
    return directory


Weights = dict[str, torch.Tensor]


def weights(run: RunDir) -> Weights:
    return load_file(run.iteration(1) / "hf.partial" / "model.safetensors")


class Reference:
    """One process's training of a model, made once."""

    def __init__(self, runs_dir: Path, base: Path) -> None:
        self.runs_dir, self.base = runs_dir, base
        self.groups = random_groups(8)
        self.run, self.steps = train(tiny_config(runs_dir, "reference", base, devices=1), self.groups)

    def check(self, layout: dict[str, Any], devices: int = 2) -> None:
        name = "-".join([*layout, *map(str, layout.values()), str(devices)])
        run, steps = train(tiny_config(self.runs_dir, name, self.base, devices, **layout), self.groups)
        for ours, reference in zip(steps, self.steps, strict=True):
            assert ours["loss"] == pytest.approx(reference["loss"], abs=LOSS_TOLERANCE)
            assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-3)
        assert_same_updates(weights(run), weights(self.run), load_file(self.base / "model.safetensors"))


def assert_same_updates(ours: Weights, reference: Weights, base: Weights) -> None:
    assert ours.keys() == reference.keys() == base.keys()
    for name in base:
        change = (reference[name] - base[name]).norm()
        assert change > 0, f"{name} was not trained"
        assert (ours[name] - reference[name]).norm() / change < UPDATE_TOLERANCE, name


def test_another_normalisation_would_be_noticed(dense: Reference) -> None:
    """The wrong variant: summed instead of mean log-probs give updates that the comparison refuses."""
    config = tiny_config(dense.runs_dir, "summed", dense.base, devices=1, logprob_normalization="sum")
    run, _ = train(config, dense.groups)
    with pytest.raises(AssertionError):
        assert_same_updates(weights(run), weights(dense.run), load_file(dense.base / "model.safetensors"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny_mistral: Path) -> Reference:
    folder = tmp_path_factory.mktemp("dense")
    return Reference(folder, in_fp32(tiny_mistral, folder / "base"))


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory, tiny_mixtral: Path) -> Reference:
    folder = tmp_path_factory.mktemp("moe")
    return Reference(folder, in_fp32(tiny_mixtral, folder / "base"))


@pytest.mark.parametrize("layout", DENSE.values(), ids=DENSE)
def test_dense_layouts(dense: Reference, layout: dict[str, Any]) -> None:
    dense.check(layout)


def test_the_launcher_starts_the_same(dense: Reference) -> None:
    """The other tests fork their ranks; torch.distributed.run starts them with other variables and a store of its own."""
    trained = {}
    for name, stage in {"forked": run_stage, "started": lambda *words: finish(start(*words))}.items():
        run = make_run(tiny_config(dense.runs_dir, name, dense.base, devices=2, tensor_parallel=2), dense.groups)
        status, output = stage(run, "sami_nemo.train", 2, 1)
        assert status == 0, output
        trained[name] = weights(run)
    assert all(torch.equal(tensor, trained["forked"][name]) for name, tensor in trained["started"].items())


@pytest.mark.parametrize("layout", MOE.values(), ids=MOE)
def test_moe_layouts(moe: Reference, layout: dict[str, Any]) -> None:
    moe.check(layout)
