"""What happens around the gradient steps: reference log-probs, checks, checkpoints, logs."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state

from sami_nemo.config.schema import Config
from sami_nemo.contrast.data_module import ContrastDataModule
from sami_nemo.errors import TrainingDiverged
from sami_nemo.model.sami_model import SamiModel
from sami_nemo.model.scoring import ScoreReduction
from sami_nemo.model.training_state import checkpoints, load_training_state, save_training_state
from sami_nemo.progress import report, report_phase, stop_requested
from sami_nemo.run_dir import read_jsonl, write_jsonl


class BaseReference(pl.Callback):
    """Computes the base model's token log-probs for the KL penalty, before the first step.

    Every iteration starts from the base model, so this is the model in training itself: no second copy.
    """

    def on_train_start(self, trainer: Any, pl_module: SamiModel) -> None:
        data: ContrastDataModule = trainer.datamodule
        reduction = ScoreReduction(pl_module.train_config.logprob_normalization)
        micro_batches = iter(data.micro_batches())
        with torch.no_grad():
            for _ in range(data.steps):
                trainer.strategy.model.validation_step(micro_batches, loss_reduction=reduction)
        pl_module.base_logprobs.update({i: score.token_logprobs_CT for i, score in reduction.scores.items()})


class Checkpoints(pl.Callback):
    """Saves the training state every few steps, at the end, and when asked to stop; resumes from the newest.

    Lightning counts the steps of this process; `resumed` are those of earlier ones.
    """

    def __init__(self, directory: Path, every: int, resumed: int, total: int) -> None:
        self.directory = directory
        self.every = every
        self.resumed = resumed
        self.total = total

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        if self.resumed:
            load_training_state(trainer.optimizers[0], self.directory, self.resumed)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = self.resumed + trainer.global_step
        # Rank 0 decides: the others may look a moment earlier or later.
        stop = torch.tensor(float(stop_requested())).cuda()
        torch.distributed.broadcast(stop, 0)
        if stop.item() and step < self.total:
            trainer.should_stop = True
        if step % self.every == 0 or step == self.total or stop.item():
            save_training_state(trainer.optimizers[0], self.directory, step)


class EvaluationProgress(pl.Callback):
    """Tells how many micro-batches are scored."""

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            report_phase("work")

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        if trainer.is_global_zero:
            report(batch_idx + 1, trainer.num_test_batches[0], "micro-batches")


class FiniteCheck(pl.Callback):
    """Stops before the optimizer step if the loss or a gradient is not finite on any rank."""

    def __init__(self, resumed: int) -> None:
        self.resumed = resumed

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        step = trainer.global_step
        # The largest absolute value, because isfinite makes copies: 6 bytes for each of the rank's parameters.
        finite = all(
            bool(torch.isfinite(torch.linalg.vector_norm(buffer.grad_data, ord=math.inf)))
            for chunk in trainer.strategy.model
            for buffer in (*chunk.module.buffers, *chunk.module.expert_parallel_buffers)
        )
        # A loss that is not finite leaves gradients that are not.
        failed = torch.tensor(0.0 if finite else 1.0).cuda()
        torch.distributed.all_reduce(failed, op=torch.distributed.ReduceOp.MAX)
        if failed.item():
            names = ", ".join(group.query.id for group in trainer.datamodule.step_groups(step))
            raise TrainingDiverged(
                "gradient",
                "not finite",
                f"at step {self.resumed + step + 1}, on the groups of queries {names}; nothing was updated or saved; "
                "lower train.lr or look at these responses",
            )


class StepLog(pl.Callback):
    """Writes one line per step to the run, to the loggers and to the progress of the stage."""

    def __init__(self, config: Config, directory: Path, resumed: int, total: int, loggers: list[Any]) -> None:
        self.config = config
        self.file = directory / "steps.jsonl"
        self.resumed = resumed
        self.total = total
        self.loggers = loggers
        self.rows = read_jsonl(self.file)[:resumed] if self.file.exists() else []
        self.began = time.monotonic()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        # The only epoch. Checkpoints has loaded its state by now.
        self.began = time.monotonic()
        if trainer.is_global_zero:
            report_phase("work")
            report(self.resumed, self.total, "steps")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        measures = _from_last_stage(outputs, kl=bool(self.config.train.kl_beta))
        if not trainer.is_global_zero:
            return
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        step = self.resumed + trainer.global_step
        tokens = trainer.datamodule.step_tokens(trainer.global_step - 1)
        row = {
            "step": step,
            **measures,
            "grad_norm": float(trainer.callback_metrics.get("grad_norm", math.nan)),
            "seconds": round(seconds, 3),
            "tokens": tokens,
        }
        self.rows.append(row)
        write_jsonl(self.file, self.rows)
        for logger in self.loggers:
            logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step)
            logger.save()
        print(json.dumps(row), flush=True)
        report(step, self.total, "steps", tokens_per_s=round(tokens / seconds, 1), **measures)


def _from_last_stage(outputs: Any, kl: bool) -> dict[str, float]:
    """Loss and bound of the step: only the last pipeline stage has them, rank 0 writes them."""
    names = ["loss", "bound", *(["kl"] if kl else [])]
    values = torch.zeros(len(names)).cuda()
    if parallel_state.is_pipeline_last_stage():
        values = torch.stack([outputs[name].float() for name in names])
    torch.distributed.broadcast(
        values,
        parallel_state.get_pipeline_model_parallel_last_rank(),
        parallel_state.get_pipeline_model_parallel_group(),
    )
    return {name: round(float(value), 6) for name, value in zip(names, values, strict=True)}


def last_checkpoint(directory: Path) -> int:
    """The step that training goes on from; 0 without a checkpoint."""
    return max(checkpoints(directory), default=0)
