"""The planner's parameter counts and bytes against Megatron's own models, at up to 1,024 ranks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.geometry import Geometry
from sami_nemo.planner.batch import longest_batch
from sami_nemo.planner.layout import Layout, layout_of
from sami_nemo.planner.memory import CPU, rank_memory
from sami_nemo.planner.parameters import (
    active_parameters,
    buffers,
    count,
    rank_weights,
    shards,
    total_parameters,
)
from sami_nemo.run_dir import read_json
from tests.distributed.ranks import run_ranks, tail
from tests.unit import megatron_ranks

# Devices, tensor, pipeline and expert parallel.
Shape = tuple[int, int, int, int]
LAYOUTS: dict[str, list[Shape]] = {
    "mixtral_8x7b": [(8, 1, 1, 8), (8, 2, 2, 2), (64, 2, 4, 8), (64, 8, 8, 1), (512, 4, 2, 8), (1024, 2, 4, 8)],
    "mixtral_8x22b": [(8, 8, 1, 1), (8, 1, 2, 4), (64, 8, 8, 1), (64, 4, 2, 8), (512, 8, 8, 2), (1024, 4, 4, 8)],
    # Tied embeddings, which are copied to the last stage; 3 key-value heads.
    "smollm2": [(8, 1, 2, 1), (12, 3, 2, 1), (1, 1, 1, 1)],
}


def configured(model: str, devices: int, tensor: int, pipeline: int, expert: int, *more: str) -> Config:
    return compose(
        [
            f"model={model}",
            "model.path=none",
            "train=paper",
            "train.precision=bf16",
            f"hardware.devices_per_node={devices}",
            f"train.tensor_parallel={tensor}",
            f"train.pipeline_parallel={pipeline}",
            f"train.expert_parallel={expert}",
            f"train.sequence_parallel={str(tensor > 1).lower()}",
            *more,
        ]
    )


def known(config: Config) -> Geometry:
    geometry = base_geometry(config.model)
    assert geometry is not None
    return geometry


def end_ranks(layout: Layout) -> list[tuple[int, int]]:
    """Global rank and pipeline stage at both ends of every axis, in Megatron's order: TP, EP, expert DP, PP."""
    tensor, expert, data = layout.tensor, layout.expert, layout.expert_data
    ends = itertools.product(*({0, size - 1} for size in (tensor, expert, data, layout.pipeline)))
    return sorted((t + tensor * (e + expert * (d + data * stage)), stage) for t, e, d, stage in ends)


def measure(cases: list[dict[str, Any]], folder: Path) -> list[dict[str, int]]:
    log, report = folder / "log", folder / "report.json"
    assert run_ranks(1, log, megatron_ranks.measure_sizes, cases, report) == 0, tail(log)
    return read_json(report)


@pytest.mark.slow
@pytest.mark.parametrize("numerics", [("fp32", None), ("fp32", "bf16"), ("bf16", None)], ids=str)
@pytest.mark.parametrize("model", sorted(LAYOUTS))
def test_equals_megatron_on_ranks_at_every_end(model: str, numerics: tuple[str, str | None], tmp_path: Path) -> None:
    masters, gradients = numerics
    more = [f"train.master_weights={masters}", f"train.gradients={gradients or 'null'}"]
    assert_equals_megatron(model, LAYOUTS[model], more, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "tokens", "shapes"),
    [
        ("mixtral_8x7b", 32_003, [(8, 2, 2, 2), (64, 8, 8, 1)]),
        # Tied embeddings, which are copied to the last stage. Of 3 ranks the last has two rows of no token.
        ("smollm2", 49_153, [(12, 3, 2, 1), (1, 1, 1, 1)]),
    ],
)
def test_equals_megatron_where_ranks_do_not_divide_the_vocabulary(
    model: str, tokens: int, shapes: list[Shape], tmp_path: Path
) -> None:
    assert_equals_megatron(model, shapes, ["model.prepare=none", f"model.vocab_size={tokens}"], tmp_path)


def assert_equals_megatron(model: str, shapes: list[Shape], more: list[str], folder: Path) -> None:
    cases, expected = [], []
    for shape in shapes:
        config = configured(model, *shape, *more)
        layout, geometry = layout_of(config), known(config)
        train = {key: getattr(config.train, key) for key in ("optimizer", "master_weights", "gradients")}
        train |= {key: getattr(config.train, key) for key in ("sequence_parallel", "tensor_parallel")}
        train |= {key: getattr(config.train, key) for key in ("pipeline_parallel", "expert_parallel")}
        for rank, stage in end_ranks(layout):
            cases.append({"geometry": geometry, "train": train, "world": layout.devices, "rank": rank})
            expected.append((layout, stage, config))
    for case, found, (layout, stage, config) in zip(cases, measure(cases, folder), expected, strict=True):
        weights = rank_weights(known(config), layout, stage)
        held = buffers(weights, layout)
        memory = rank_memory(known(config), layout, longest_batch(config), stage, CPU)
        where = f"{model} {layout} rank {case['rank']}"
        assert found["parameters"] == count(weights), where
        assert (found["dense"], found["expert"]) == (held.dense, held.expert), where
        assert found["weight_bytes"] == memory.weights, where
        assert found["gradient_bytes"] == memory.gradients, where
        # A shard ends where its bucket does: the last rank's may hold padding instead of parameters.
        assert found["updated"] <= shards(held, layout).total, where
        assert found["updated"] >= shards(held, layout).total - (held.total - found["parameters"]), where
        master_size = 4 if config.train.master_weights == "fp32" else 2
        assert found["updated_bytes"] == found["updated"] * master_size, where


def test_published_sizes() -> None:
    """Mistral AI: 7.3 B; 46.7 B, of which 12.9 B are active; 141 B and 39 B. SmolLM2: 134,515,008."""
    found = {
        model: known(configured(model, 1, 1, 1, 1))
        for model in ("mistral_7b", "mixtral_8x7b", "mixtral_8x22b", "smollm2")
    }
    assert total_parameters(found["smollm2"]) == 134_515_008
    assert total_parameters(found["mistral_7b"]) == active_parameters(found["mistral_7b"]) == 7_241_732_096
    assert total_parameters(found["mixtral_8x7b"]) == 46_702_792_704
    assert active_parameters(found["mixtral_8x7b"]) / 1e9 == pytest.approx(12.9, abs=0.05)
    assert total_parameters(found["mixtral_8x22b"]) / 1e9 == pytest.approx(141, abs=0.5)
    assert active_parameters(found["mixtral_8x22b"]) / 1e9 == pytest.approx(39, abs=0.5)


def test_buffers_are_padded_for_even_shards() -> None:
    """Three parameters of 100 elements begin at 0, 128 and 256; the end, 356, goes up to a multiple of 128 and of 6 ranks."""
    from dataclasses import replace

    from sami_nemo.planner.parameters import SINGLE, Weight

    layout = replace(SINGLE, devices=6)
    weights = [Weight("a", 100, 3)]
    assert buffers(weights, layout).dense == 384
    assert shards(buffers(weights, layout), layout).dense == 64
    assert buffers(weights, replace(layout, distributed_optimizer=False)).dense == 300
