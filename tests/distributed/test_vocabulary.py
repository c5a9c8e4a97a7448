"""Tensor-parallel ranks that do not divide the vocabulary give what one process gives, and the same checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from sami_nemo.base_model import random_model
from sami_nemo.errors import EXIT_USER_ERROR
from sami_nemo.geometry import Architecture, vocabulary_part
from sami_nemo.run_dir import read_json, write_json
from tests.distributed import vocabulary_worker
from tests.distributed.ranks import run_ranks, tail
from tests.distributed.test_training import Reference, weights
from tests.distributed.training_runs import make_run, random_groups, run_stage, tiny_config, train

pytestmark = pytest.mark.slow

Cases = dict[str, dict[str, Any]]

# Mixtures are shared by tensor-parallel ranks in sequence parallelism alone.
SEQUENCE: dict[str, Any] = {"tensor_parallel": 2, "sequence_parallel": True}
TWO: dict[str, Cases] = {
    "mistral": {"tensor": {"tensor_parallel": 2}, "sequence": SEQUENCE, "plain": {**SEQUENCE, "layout": "plain"}},
    "mixtral": {"sequence": SEQUENCE, "plain": {**SEQUENCE, "layout": "plain"}},
}
FOUR: dict[str, Cases] = {
    "mistral": {
        "tensor": {"tensor_parallel": 4},
        "sequence": {**SEQUENCE, "tensor_parallel": 4},
        "pipeline": {"tensor_parallel": 2, "pipeline_parallel": 2},
    },
    "mixtral": {"sequence": {**SEQUENCE, "tensor_parallel": 4}, "pipeline": {**SEQUENCE, "pipeline_parallel": 2}},
}
# In fp32: sums in another order.
TOLERANCE = 5e-6
# Few tokens, so that a row that is none would have a large share: of 13 ranks have 7 and 6, or 4, 4, 4 and 1; of 5 four
# ranks have 2, 2, 1 and none.
SIZES = [(2, 13), (4, 13), (4, 5)]


def make_base(directory: Path, architecture: Architecture, tokens: int, tied: bool) -> Path:
    """A tiny checkpoint in fp32, with as many key-value heads as four ranks share. It has no tokenizer."""
    experts = 4 if architecture == "mixtral" else None
    geometry = random_model.geometry(architecture, num_key_value_heads=4, num_experts=experts, vocab_size=tokens)
    values = replace(geometry, tied_embeddings=tied).hf()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values, initializer_range=0.08))
    model.save_pretrained(directory)
    return directory


def compare(processes: int, checkpoint: Path, folder: Path, cases: Cases) -> dict[str, dict[str, Any]]:
    log = folder / "ranks.log"
    assert run_ranks(processes, log, vocabulary_worker.compare, checkpoint, folder, cases) == 0, tail(log)
    return read_json(folder / "report.json")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", ["mistral", "mixtral"])
@pytest.mark.parametrize(("processes", "tokens"), SIZES)
def test_equals_one_process(
    processes: int, tokens: int, architecture: Architecture, tied: bool, tmp_path: Path
) -> None:
    cases = (TWO if processes == 2 else FOUR)[architecture]
    wrong = {**next(iter(cases.values())), "padding_counts": True}
    base = make_base(tmp_path / "base", architecture, tokens, tied)
    reports = compare(processes, base, tmp_path, cases | {"wrong": wrong})
    apart = reports.pop("wrong")
    assert min(apart["logprobs"], apart["gradients"]) > 1000 * TOLERANCE
    for name, report in reports.items():
        ranks = cases[name]["tensor_parallel"]
        assert report["rows"] == vocabulary_part(tokens, ranks) * ranks - tokens > 0, name
        assert report["logprobs"] < TOLERANCE, name
        assert report["gradients"] < TOLERANCE, name
        assert report["gradient"] == 0 and report["weight"] == 0, name
        assert report["identical"], name


TOKENS = 1021  # odd: two ranks have 511 rows, four have 256


def make_whole(directory: Path, architecture: Architecture, tied: bool, tokens: int = TOKENS) -> Path:
    """The same with a tokenizer, as an export takes it along."""
    make_base(directory, architecture, tokens, tied)
    random_model.train_tokenizer(random_model.shipped_text(), TOKENS).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", ["mistral", "mixtral"])
def test_training_and_its_export(architecture: Architecture, tied: bool, tmp_path: Path) -> None:
    """Two steps through NeMo's trainer: losses, norms of gradients, updates; the export is verified with transformers."""
    reference = Reference(tmp_path, make_whole(tmp_path / "base", architecture, tied))
    sequence = {"sequence_parallel": architecture == "mixtral"}
    for ranks, pipeline in ((2, 1), (4, 1), (2, 2)):
        layout = {"tensor_parallel": ranks, "pipeline_parallel": pipeline}
        reference.check(layout | sequence, devices=ranks * pipeline)


@pytest.mark.parametrize(("rows", "stated"), [(TOKENS, TOKENS + 1), (TOKENS + 1, TOKENS)])
def test_padding_hides_no_other_vocabulary(rows: int, stated: int, tmp_path: Path) -> None:
    """config.json was not told of a token that was added, or of one too many: two ranks have 511 rows in any case."""
    base = make_whole(tmp_path / "base", "mistral", tied=False, tokens=rows)
    write_json(base / "config.json", read_json(base / "config.json") | {"vocab_size": stated})
    run = make_run(tiny_config(tmp_path, "other", base, 2, tensor_parallel=2), random_groups(8))
    status, output = run_stage(run, "sami_nemo.train", 2, 1)
    assert status == EXIT_USER_ERROR
    found = f"({511 + rows - stated}, 128) instead of (511, 128)"
    assert f"model.path = {base}: model.embed_tokens.weight gives" in output and found in output


@pytest.mark.parametrize(
    "numerics",
    [
        {"precision": "fp32", "optimizer": "adamw"},
        {"precision": "bf16", "optimizer": "rmsprop"},
        {"precision": "bf16", "optimizer": "adamw", "master_weights": "bf16"},
    ],
    ids=lambda numerics: " ".join(numerics.values()),
)
def test_rows_of_no_token_stay_zero(numerics: dict[str, Any], tmp_path: Path) -> None:
    """With weight decay, in the embedding and in the last stage's copy of it: weights, masters and moments. Resuming goes
    on with them."""
    base, groups = make_whole(tmp_path / "base", "mistral", tied=True), random_groups(8)
    settings = {"tensor_parallel": 2, "pipeline_parallel": 2, "distributed_optimizer": False, "weight_decay": 0.1}
    settings |= numerics
    config = tiny_config(tmp_path, "stopped", base, 4, **settings)
    run, log = make_run(config, groups), tmp_path / "stopped.log"
    assert run_ranks(4, log, vocabulary_worker.train_one_step, run.root) == 0, tail(log)
    saved = run.iteration(1) / "train.partial" / "checkpoints" / "step_1"
    for rank in range(4):
        tensors = load_file(saved / f"rank_{rank}.safetensors").values()
        ends = [tensor[-1] for tensor in tensors if tensor.shape == (vocabulary_part(TOKENS, 2), 128)]
        assert len(ends) == (2 if numerics["optimizer"] == "rmsprop" else 3)
        # Tensor-parallel ranks count first.
        assert [bool(end.any()) for end in ends] == [rank % 2 == 0] * len(ends)
    resumed, _ = train(config, groups)
    undisturbed, _ = train(tiny_config(tmp_path, "undisturbed", base, 4, **settings), groups)
    expected = weights(undisturbed)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())
