"""Gradient steps of the recipe, as its own stage takes them, beside the same steps written with transformers.

Runs under torch.distributed.run, for tools/bench_train.py:

    python -m torch.distributed.run … -m sami_nemo.bench.training CASE

CASE is a `Case` as JSON. Prints one line, `REPORT ` and JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sami_nemo.bench.groups import Task, real_groups, synthetic_groups
from sami_nemo.bench.measure import matmul_flops, peak_resident, reset_peak, resident
from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.records import ContrastGroup
from sami_nemo.stage_entry import is_writer

Mode = Literal["pair", "ours", "theirs"]


@dataclass(frozen=True)
class Case:
    """What is measured."""

    task: Task
    constitutions: int
    groups: int
    """Of a gradient step."""
    repeats: int
    """Measured steps, after one that is not counted."""
    mode: Mode
    """Both in turn, to compare times; or one alone, whose memory is measured too."""
    overrides: tuple[str, ...] = ()
    """Of the recipe sami_smol."""
    data: str | None = None
    """Directory of real texts; None: random tokens of typical lengths."""
    prompt: int | None = None
    """Mean length of random prompts, tokens; None: what is typical of the task."""
    seed: int = 0

    def config(self) -> Config:
        return compose(
            [
                "recipe=sami_smol",
                f"seed={self.seed}",
                f"train.batch_size={self.groups}",
                f"train.constitutions_per_query={self.constitutions}",
                *self.overrides,
            ]
        )

    def contrast_groups(self, model: Path) -> list[ContrastGroup]:
        if self.data is not None:
            return real_groups(self.task, self.constitutions, self.groups, model, Path(self.data), self.seed)
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        return synthetic_groups(self.task, self.constitutions, self.groups, vocabulary, self.seed, self.prompt)


def measure(case: Case) -> dict[str, Any]:
    """Seconds and losses of each step, peak memory, and what there was to compute."""
    config = case.config()
    base = Path(config.model.path)
    groups = case.contrast_groups(base)
    report: dict[str, Any] = {
        "prompt": _mean(len(ids) for group in groups for ids in group.prompt_ids),
        "response": _mean(len(ids) for group in groups for ids in group.response_ids),
        "precision": config.train.precision,
        **counts(config, groups),
    }
    if case.mode == "theirs":
        return report | _theirs_alone(case, config, base, groups)
    return report | _ours(case, config, base, groups)


def _mean(lengths: Any) -> float:
    values = list(lengths)
    return sum(values) / len(values)


def counts(config: Config, groups: Sequence[ContrastGroup]) -> dict[str, float]:
    """Positions that either computes in a step, and the operations that no way of computing the loss can do without."""
    from sami_nemo.base_model.geometry import base_geometry
    from sami_nemo.contrast.batches import group_length, group_tokens
    from sami_nemo.planner.compute import ATTENTION_PASSES, MATRIX_PASSES, attention_flops, head_flops, matrix_flops

    geometry = base_geometry(config.model)
    assert geometry is not None
    unique = 0.0
    for group in groups:
        size = len(group.prompt_ids)
        responses = size * sum(map(len, group.response_ids))
        # Pairs of a query and a key: a prompt with itself, each response with its prompt and itself.
        pairs = sum(
            len(prompt) ** 2 / 2 + sum(len(r) * (len(prompt) + len(r) / 2) for r in group.response_ids)
            for prompt in group.prompt_ids
        )
        layer: float = MATRIX_PASSES * matrix_flops(geometry, group_tokens(group, "shared_prefix"))
        layer += ATTENTION_PASSES * attention_flops(geometry, pairs)
        unique += geometry.num_layers * layer + MATRIX_PASSES * head_flops(geometry, responses)
    return {
        "ours_tokens": sum(group_tokens(group, config.train.layout) for group in groups),
        "theirs_tokens": sum(len(group.prompt_ids) ** 2 * group_length(group) for group in groups),
        "unique_flops": unique,
    }


def _theirs_alone(case: Case, config: Config, base: Path, groups: Sequence[ContrastGroup]) -> dict[str, Any]:
    from sami_nemo.bench.comparator import TransformersTrainer

    trainer = TransformersTrainer(base, config.train)
    losses, seconds = [trainer.step(groups)], []
    resting = resident()
    reset_peak()
    for _ in range(case.repeats):
        began = time.monotonic()
        losses.append(trainer.step(groups))
        seconds.append(time.monotonic() - began)
    return {"resting": resting, "peak": peak_resident(), "theirs": seconds, "theirs_loss": losses}


def _ours(case: Case, config: Config, base: Path, groups: list[ContrastGroup]) -> dict[str, Any]:
    """The recipe's own trainer, with a callback that takes the times."""
    import lightning.pytorch as pl
    import torch

    from sami_nemo.bench.comparator import TransformersTrainer
    from sami_nemo.contrast.batches import group_length, group_tokens
    from sami_nemo.contrast.data_module import ContrastDataModule
    from sami_nemo.model.trainer import backend, build_model, build_trainer

    found: dict[str, Any] = {"ours": [], "theirs": [], "ours_loss": [], "theirs_loss": []}

    class Stopwatch(pl.Callback):
        """Their step comes after each of ours, outside the CPU backend's redirection of torch functions."""

        def __init__(self) -> None:
            with torch._C.DisableTorchFunction():
                self.theirs = TransformersTrainer(base, config.train) if case.mode == "pair" else None

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1 and case.mode == "ours":
                found["resting"] = resident()
                reset_peak()
            torch.cuda.synchronize()
            self.began = time.monotonic()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            torch.cuda.synchronize()
            found["ours"].append(time.monotonic() - self.began)
            found["ours_loss"].append(float(outputs["loss"]) if outputs else None)
            found["peak"] = torch.cuda.max_memory_allocated() or peak_resident()
            if self.theirs is None:
                return
            began = time.monotonic()
            with torch._C.DisableTorchFunction(), torch.enable_grad():
                found["theirs_loss"].append(self.theirs.step(groups))
            found["theirs"].append(time.monotonic() - began)

    steps = 1 + case.repeats
    with backend(config):
        model = build_model(config, base, max(map(group_length, groups)))
        trainer = build_trainer(config, max_steps=steps, callbacks=[Stopwatch()])
        trainer.fit(model, ContrastDataModule(config, groups, list(range(len(groups))) * steps, len(groups)))
        rows = max(group_tokens(group, "shared_prefix") for group in groups)
        width, columns = model.config.hidden_size, 2 * model.config.ffn_hidden_size
        found["matmul_flops"] = matmul_flops(config.train.precision, rows, width, columns)
    for name in ("ours", "theirs"):
        # The first step also makes the optimizer's states.
        found[name] = found[name][1:]
    return found


if __name__ == "__main__":
    case = json.loads(sys.argv[1])
    result = measure(Case(**{**case, "overrides": tuple(case["overrides"])}))
    if is_writer():
        print("REPORT", json.dumps(result), flush=True)
