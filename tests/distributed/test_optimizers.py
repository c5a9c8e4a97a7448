"""The optimizers through the real trainer, against torch's own on transformers' model, and resuming exactly."""

from __future__ import annotations

import functools
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sami_nemo.contrast.batches import training_order
from sami_nemo.objective import response_logprobs, sami_loss
from sami_nemo.records import ContrastGroup
from sami_nemo.run_dir import RunDir
from tests.distributed.ranks import TIMEOUT, started_ranks
from tests.distributed.test_training import Weights, assert_same_updates, in_fp32, weights
from tests.distributed.training_runs import be_stage, make_run, random_groups, run_stage, tiny_config, train

pytestmark = pytest.mark.slow

GROUPS = random_groups(8, seed=1)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("optimizers")


@pytest.fixture(scope="module")
def base(runs_dir: Path, tiny_mistral: Path) -> Path:
    return in_fp32(tiny_mistral, runs_dir / "base")


@functools.cache
def reference(base: Path, name: str) -> tuple[Weights, list[float]]:
    """Iteration 1 with the optimizer `name` in plain transformers and torch: weights and losses."""
    config, groups = tiny_config(base.parent, "reference", base, 1, optimizer=name), GROUPS
    settings = config.train
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "rmsprop":
        optimizer = torch.optim.RMSprop(parameters, settings.lr, alpha=settings.rmsprop_alpha, eps=settings.eps)
    else:
        optimizer = torch.optim.AdamW(parameters, settings.lr, betas=(0.9, 0.999), eps=settings.eps, weight_decay=0.0)
    order = training_order(len(groups), config.seed, 1)
    losses = []
    for step in range(config.training_steps(1)):
        chosen = [groups[i] for i in order[step * settings.batch_size : (step + 1) * settings.batch_size]]
        loss = torch.stack([group_loss(model, group, settings.logprob_normalization) for group in chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_grad)
        optimizer.step()
        losses.append(loss.item())
    return dict(model.state_dict()), losses


def group_loss(model: Any, group: ContrastGroup, normalization: Any) -> torch.Tensor:
    """As one would write it with transformers: every response behind every prompt, one at a time."""
    values = []
    for prompt in group.prompt_ids:
        for response in group.response_ids:
            logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            token_logprobs = logits.float().log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
            values.append(response_logprobs(token_logprobs, torch.ones(len(response)), normalization))
    return sami_loss(torch.stack(values).view(2, 2))


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed", "plain"])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_equals_torch_on_transformers(runs_dir: Path, base: Path, optimizer: str, distributed: bool) -> None:
    devices = 2 if distributed else 1
    config = tiny_config(
        runs_dir, f"{optimizer}-{distributed}", base, devices, optimizer=optimizer, distributed_optimizer=distributed
    )
    run, steps = train(config, GROUPS)
    expected, losses = reference(base, optimizer)
    assert [row["loss"] for row in steps] == pytest.approx(losses, abs=1e-4)
    trained = weights(run)
    assert_same_updates(trained, {name: expected[name] for name in trained}, load_file(base / "model.safetensors"))


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed", "plain"])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_bf16_weights_are_too_coarse_for_small_rates(
    runs_dir: Path, tiny_mistral: Path, optimizer: str, distributed: bool
) -> None:
    """In place, a small step is lost in a large weight; with masters two steps add up (here: before rounding)."""
    common = {"optimizer": optimizer, "precision": "bf16", "lr": 1e-5, "distributed_optimizer": distributed}
    name = f"bf16-{optimizer}-{distributed}"
    run, steps = train(
        tiny_config(runs_dir, name, tiny_mistral, 1 + distributed, master_weights="bf16", **common), GROUPS
    )
    assert len(steps) == 2
    before, after = load_file(tiny_mistral / "model.safetensors"), weights(run)
    changed = sum(int((before[n] != after[n]).sum()) for n in before)
    total = sum(tensor.numel() for tensor in before.values())
    assert 0 < changed < total / 10


LONGER: dict[str, Any] = {"batches": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def undisturbed(runs_dir: Path, base: Path) -> tuple[RunDir, list[dict[str, Any]]]:
    return train(tiny_config(runs_dir, "undisturbed", base, 2, **LONGER), GROUPS)


@pytest.mark.parametrize(("moment", "saved"), [("between-steps", "step_[12]"), ("after-the-last", "step_4")])
def test_killed_training_resumes_to_the_same_weights(
    runs_dir: Path, base: Path, undisturbed: tuple[RunDir, list[dict[str, Any]]], moment: str, saved: str
) -> None:
    config = tiny_config(runs_dir, f"killed-{moment}", base, 2, **LONGER)
    run = make_run(config, GROUPS)
    checkpoints = run.iteration(1) / "train.partial" / "checkpoints"
    with started_ranks(2, run.root / "killed.log", be_stage, run.root, "sami_nemo.train", 1) as ranks:
        deadline = time.monotonic() + TIMEOUT
        while not list(checkpoints.glob(saved)):
            assert all(rank.is_alive() for rank in ranks) and time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.02 * random.random())
    again, resumed_rows = train(config, GROUPS)
    ours, expected = weights(again), weights(undisturbed[0])
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert [row["loss"] for row in resumed_rows] == [row["loss"] for row in undisturbed[1]]


def test_not_finite_stops_before_the_step(runs_dir: Path, base: Path, tmp_path: Path) -> None:
    """Weights that overflow make the loss infinite: nothing is updated or saved, and the step and groups are named."""
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.model.norm.weight.data.fill_(torch.finfo(torch.float32).max)
    model.save_pretrained(broken)
    for file in base.glob("token*"):
        (broken / file.name).write_bytes(file.read_bytes())
    run = make_run(tiny_config(runs_dir, "broken", broken, 2), GROUPS)
    status, output = run_stage(run, "sami_nemo.train", 2, 1)
    assert status != 0
    assert "not finite: at step 1" in output and "query-" in output
    assert not list(run.iteration(1).rglob("step_*"))


def test_kl_penalty_holds_the_model_back(runs_dir: Path, base: Path) -> None:
    config = tiny_config(runs_dir, "kl", base, 2, kl_beta=100.0, pipeline_parallel=2, lr=1e-4)
    _, rows = train(config, GROUPS)
    # The model in training is the base model at first; then it has moved.
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["kl"] > 1e-5
    assert rows[1]["loss"] == pytest.approx(0.693147 - rows[1]["bound"] + 100 * rows[1]["kl"], abs=1e-3)
