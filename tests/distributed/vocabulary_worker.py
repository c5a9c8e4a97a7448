"""Runs on every rank: a vocabulary that the tensor-parallel ranks do not divide, against one process."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from megatron.core import parallel_state
from torch import Tensor

from sami_nemo.checkpoint.hf_export import export_hf
from sami_nemo.checkpoint.hf_map import Vocabulary
from sami_nemo.checkpoint.placement import place_parameters
from sami_nemo.config.schema import TrainConfig
from sami_nemo.config_json import read_geometry
from sami_nemo.model import contrast_gpt
from sami_nemo.model.cpu_backend import cpu_backend
from sami_nemo.progress import STOP_VARIABLE
from sami_nemo.records import ContrastGroup
from tests.distributed.conversion_worker import identical
from tests.distributed.layouts_worker import differences, forward_and_backward, gradient_difference, gradients
from tests.distributed.training_runs import be_stage, random_groups

Part = tuple[tuple[str, ...], int, Any, Tensor]
"""Hugging Face names, tensor-parallel rank, layout and gradient of one rank's parameter."""


@cpu_backend()
def compare(base: Path, folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Writes report.json into `folder`.

    Args:
        cases: names and training settings; `padding_counts`: as a wrong variant would have it. Reported is of each how far
            token log-probs and whole gradients are from those of one process (as layouts_worker does), how many rows of
            no token the ranks have together, the largest gradient and weight of those, and whether an export without a
            step is the checkpoint to the bit.
    """
    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=10))
    tokens = read_geometry(base).vocab_size
    groups = random_groups(4, vocabulary=tokens, first=0)
    # The token next to the padding is embedded, and is a label.
    assert {i for group in groups for ids in group.prompt_ids for i in ids} >= {0, tokens - 1}
    assert {i for group in groups for ids in group.response_ids for i in ids} >= {0, tokens - 1}
    expected_logprobs, expected, _ = evaluate(base, {}, groups)
    reports: dict[str, Any] = {}
    for name, case in cases.items():
        logprobs, found, report = evaluate(base, case, groups, folder / name)
        largest, _ = differences(logprobs, expected_logprobs)
        reports[name] = report | {"logprobs": over_ranks(largest), "gradients": gradient_difference(expected, found)}
        assert found.keys() == expected.keys()
    if torch.distributed.get_rank() == 0:
        (folder / "report.json").write_text(json.dumps(reports))


def evaluate(
    base: Path, case: dict[str, Any], groups: list[ContrastGroup], exported: Path | None = None
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Any]]:
    """Log-probs on the last pipeline stage, the whole model's gradients, and what `compare` reports of padding."""
    settings: dict[str, Any] = {"batch_size": 4, "batches": 1, "optimizer": "adamw", "lr": 1.0, "precision": "fp32"}
    train = TrainConfig(**settings | {key: value for key, value in case.items() if key != "padding_counts"})
    parallel_state.initialize_model_parallel(train.tensor_parallel, train.pipeline_parallel)
    right = contrast_gpt.token_logprobs

    def all_rows_count(hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary: int, group: Any) -> Tensor:
        return right(hidden, weight, labels, len(weight) * train.tensor_parallel, group)

    wrong = case.get("padding_counts", False)
    with patch.object(contrast_gpt, "token_logprobs", all_rows_count if wrong else right):
        model, logprobs = forward_and_backward(base, train, groups, on_gpu=False)
    whole, report = joined(model)
    if exported is not None:
        if torch.distributed.get_rank() == 0:
            exported.mkdir()
        torch.distributed.barrier()
        export_hf(model, base, exported)
        report["identical"] = torch.distributed.get_rank() > 0 or identical(base, exported, torch.float32)
    parallel_state.destroy_model_parallel()
    return logprobs, whole, report


def joined(model: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gradients of the Hugging Face tensors, and the rows of no token with their largest gradient and weight."""
    found = gradients(model)
    placed = place_parameters(model)
    own: list[Part] = [(each.hf_names, each.rank, each.layout, found[each.name]) for each in placed]
    shards: dict[tuple[str, ...], dict[int, Tensor]] = {}
    layouts = {}
    for names, rank, layout, gradient in (part for parts in gathered(own) for part in parts):
        layouts[names] = layout
        parts = shards.setdefault(names, {})
        # Both ends of a pipeline have a part of tied embeddings' gradient, which training adds.
        parts[rank] = parts[rank] + gradient if layout.sharded and rank in parts else gradient
    whole, rows, largest = {}, 0, 0.0
    for names, parts in shards.items():
        in_order = [parts[rank] for rank in sorted(parts)]
        whole |= dict(zip(names, layouts[names].join(in_order), strict=True))
        if isinstance(layouts[names], Vocabulary):
            padding = torch.cat(in_order)[layouts[names].tokens :]
            rows, largest = len(padding), max([largest, *padding.abs().flatten().tolist()])
    weights = [
        float(parameter.abs().max())
        for each in placed
        if isinstance(each.layout, Vocabulary)
        for parameter in [each.parameter[max(0, each.layout.tokens - each.rank * len(each.parameter)) :]]
        if len(parameter)
    ]
    return whole, {"rows": rows, "gradient": largest, "weight": over_ranks(max(weights, default=0.0))}


def gathered(own: list[Part]) -> list[list[Part]]:
    """Of the ranks of one model: replicas compute the same."""
    group = parallel_state.get_model_parallel_group()
    everyone: list[list[Part]] = [[]] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyone, own, group)
    return everyone


def train_one_step(root: Path) -> None:
    """The training stage, asked to stop from the beginning: it saves its state after its first step."""
    os.environ[STOP_VARIABLE] = str(root)
    be_stage(root, "sami_nemo.train", 1)


def over_ranks(value: float) -> float:
    """The largest."""
    largest = torch.tensor(value, dtype=torch.float64)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return float(largest)
