"""Runs on every rank: the same contrast groups in the plain and in the shared-prefix layout. On a GPU, as a program:

python -m torch.distributed.run layouts_worker.py CHECKPOINT FOLDER CASES
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from sami_nemo.checkpoint.hf_import import load_hf_weights
from sami_nemo.config.schema import TrainConfig
from sami_nemo.config_json import read_geometry
from sami_nemo.contrast.batches import Batch, batch_length, collate
from sami_nemo.model.cpu_backend import cpu_backend
from sami_nemo.model.megatron_config import nemo_config
from sami_nemo.records import ContrastGroup
from tests.distributed.training_runs import random_groups


@cpu_backend()
def compare_on_cpu(base: Path, folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    compare(base, folder, cases, on_gpu=False)


def compare(base: Path, folder: Path, cases: dict[str, dict[str, Any]], on_gpu: bool) -> None:
    """Writes report.json into `folder`.

    Args:
        cases: names and training settings. Reported is of each how far token log-probs (largest and mean difference in
            nats, relative to those above 1) and gradients (largest difference of a tensor relative to its norm) of the
            two layouts are apart, over all ranks.
    """
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=10))
    reports: dict[str, Any] = {}
    for name, case in cases.items():
        settings: dict[str, Any] = {"batch_size": 4, "batches": 1, "optimizer": "adamw", "lr": 1.0, "precision": "fp32"}
        train = TrainConfig(**{**settings, **{key: value for key, value in case.items() if key != "size"}})
        parallel_state.initialize_model_parallel(
            train.tensor_parallel, train.pipeline_parallel, expert_model_parallel_size=train.expert_parallel
        )
        # Responses of one token are among them, and groups of unequal length.
        groups = random_groups(4, size=case.get("size", 2), seed=len(reports))
        plain, packed = (
            evaluate(base, train.model_copy(update={"layout": layout}), groups, on_gpu)
            for layout in ("plain", "shared_prefix")
        )
        worst = torch.tensor(
            [*differences(plain[0], packed[0]), gradient_difference(plain[1], packed[1])], dtype=torch.float64
        ).cuda()
        torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
        reports[name] = dict(zip(("logprobs", "mean", "gradients"), worst.tolist(), strict=True))
        parallel_state.destroy_model_parallel()
    if torch.distributed.get_rank() == 0:
        (folder / "report.json").write_text(json.dumps(reports))


def evaluate(
    base: Path, train: TrainConfig, groups: list[ContrastGroup], on_gpu: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Token log-probs of each micro-batch (last pipeline stage), and this rank's gradients."""
    model, logprobs = forward_and_backward(base, train, groups, on_gpu)
    return logprobs, gradients(model)


def forward_and_backward(
    base: Path, train: TrainConfig, groups: list[ContrastGroup], on_gpu: bool
) -> tuple[torch.nn.Module, list[Tensor]]:
    """The model with its gradients, and token log-probs of each micro-batch (last pipeline stage)."""
    model = nemo_config(read_geometry(base), train, 64, on_gpu).configure_model(None).cuda()
    load_hf_weights(model, base)
    # Every data-parallel rank takes all groups: what is compared does not depend on how they are dealt.
    batches = []
    for pair in ([0, 1], [2, 3]):
        together = [groups[i] for i in pair]
        length = -(-batch_length(together, train.layout) // train.tensor_parallel) * train.tensor_parallel
        batch = collate(together, pair, length, train.layout)
        batches.append(batch.to("cuda"))

    def forward_step(iterator: Iterator[Batch], model: torch.nn.Module) -> Any:
        batch = next(iterator)
        output = model(
            batch.tokens,
            batch.position_ids,
            batch.row_lengths,
            predicts_n=batch.predicts_n,
            labels_n=batch.labels_n,
        )

        def loss(logprobs_n: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            # Every token weighs differently, so that errors cannot cancel out.
            weights_n = torch.linspace(0.1, 1.0, len(logprobs_n)).cuda()
            return (logprobs_n * weights_n).sum(), {"logprobs": logprobs_n.detach()}

        return output, loss

    results = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=64,
        micro_batch_size=1,
        forward_only=False,
    )
    return model, [result["logprobs"] for result in results]


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if getattr(parameter, "sequence_parallel", False):
            # Each rank has the part of its positions, and layouts have other positions.
            torch.distributed.all_reduce(parameter.grad, group=parallel_state.get_tensor_model_parallel_group())
        found[name] = parameter.grad
    return found


def differences(plain: list[Tensor], packed: list[Tensor]) -> tuple[float, float]:
    """The largest and the mean; 0 on pipeline stages that have no log-probs."""
    if not plain:
        return 0.0, 0.0
    ours, reference = torch.cat(packed), torch.cat(plain)
    apart = (ours - reference).abs() / reference.abs().clamp(min=1)
    return float(apart.max()), float(apart.mean())


def gradient_difference(plain: dict[str, Tensor], packed: dict[str, Tensor]) -> float:
    """A rank whose part of the vocabulary has no token of the groups has gradients of 0 there, and in both layouts."""
    worst = 0.0
    for name, reference in plain.items():
        apart, size = (packed[name].float() - reference.float()).norm().item(), reference.float().norm().item()
        worst = max(worst, apart / size if size else apart)
    assert math.isfinite(worst)
    return worst


if __name__ == "__main__":
    compare(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), on_gpu=True)
