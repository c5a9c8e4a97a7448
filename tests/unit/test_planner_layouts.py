"""Layouts: which are possible, which fit, what the launcher is told, and the table in the documentation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.errors import ConfigError
from sami_nemo.geometry import Geometry
from sami_nemo.launch.checks import check_config
from sami_nemo.planner.batch import Batch, group_tokens, head_positions, longest_batch
from sami_nemo.planner.communication import step_traffic
from sami_nemo.planner.compute import attention_flops, attention_pairs, compute_seconds, matrix_flops
from sami_nemo.planner.engine import GIB
from sami_nemo.planner.fit import check_plan, disk_bytes, host_bytes
from sami_nemo.planner.layout import layout_of
from sami_nemo.planner.layouts import (
    NUMERICS,
    enumerate_layouts,
    estimate,
    fitting_layouts,
    misfit,
    rank_layouts,
    same_numerics,
)
from sami_nemo.planner.memory import (
    CHUNK_LOGITS,
    CPU,
    GPU,
    activation_peak,
    chunk_logits,
    head_memory,
    layer_activations,
    spare_gib,
)
from sami_nemo.planner.parameters import count, rank_weights
from sami_nemo.planner.scaling import scaling_table

REPOSITORY = Path(__file__).parents[2]
PLAN = REPOSITORY / "tools" / "plan.py"
GPU_RECIPES = ("sami_mistral", "sami_mistral_hh", "sami_mixtral", "sami_mixtral_8x22b")
# GiB that stay free by this planner beside its margins; the recipes state them.
ROOM_GIB = 20


def known(config: Config) -> Geometry:
    geometry = base_geometry(config.model)
    assert geometry is not None
    return geometry


@pytest.mark.parametrize("recipe", GPU_RECIPES)
def test_shipped_recipes_fit_with_room(recipe: str) -> None:
    config = compose([f"recipe={recipe}"])
    check_config(config)
    found = estimate(config, known(config), layout_of(config))
    assert found.spare_gib is not None and found.spare_gib > ROOM_GIB
    assert check_plan(config) == []
    assert (host_bytes(config) or 0) < (config.hardware.host_memory_gib or 0) * GIB


def test_room_in_the_recipes_comments() -> None:
    for recipe in ("sami_mixtral", "sami_mixtral_8x22b"):
        config = compose([f"recipe={recipe}"])
        spare = estimate(config, known(config), layout_of(config)).spare_gib
        assert spare is not None
        assert f"{spare:.0f} GiB stay free" in (REPOSITORY / "recipes" / f"{recipe}.yaml").read_text()


def test_what_does_not_fit_is_refused_with_a_layout_that_does() -> None:
    """Without the pipeline, the copies of the optimizer step are too much; on one node nothing fits."""
    flat = compose(["recipe=sami_mixtral", "train.pipeline_parallel=1"])
    (problem,) = check_plan(flat)
    advised = re.findall(r"train\.\S+=\S+", str(problem))
    again = compose(["recipe=sami_mixtral", *advised])
    check_config(again)
    assert check_plan(again) == []
    (problem,) = check_plan(compose(["recipe=sami_mixtral", "hardware=a100_8", "train.pipeline_parallel=1"]))
    assert "hardware.nodes=2" in str(problem)
    (problem,) = check_plan(compose(["recipe=sami_mixtral", "generate.tensor_parallel=1"]))
    assert problem.field == "generate.tensor_parallel"


def test_nothing_is_said_of_unknown_hardware_or_models() -> None:
    assert check_plan(compose(["recipe=sami_smol"])) == []
    assert check_plan(compose(["recipe=sami_mistral", "hardware.gpu_memory_gib=null"])) == []
    unknown = compose(["recipe=sami_mistral", "model=checkpoint", "model.path=some/model"])
    assert check_plan(unknown) == []
    assert disk_bytes(unknown) is None and host_bytes(unknown) is None


def test_disk_of_the_paper_by_hand() -> None:
    """mistral-7b: three exports of 2 bytes a parameter, two checkpoints of 12 (master, two moments), 1 GiB of text."""
    parameters, norms = 7_241_732_096, 65 * 4096
    # Both tensor-parallel ranks save the norms.
    expected = parameters * (3 * 2 + 2 * 12) + norms * 2 * 12 + GIB
    assert disk_bytes(compose(["recipe=sami_mistral"])) == pytest.approx(expected, rel=1e-6)


def test_layouts_that_cannot_work() -> None:
    config = compose(["recipe=sami_mixtral_8x22b"])
    geometry, layout = known(config), layout_of(config)
    assert misfit(config, geometry, layout) == ""
    assert "key-value heads" in misfit(config, geometry, replace(layout, tensor=16, pipeline=1))
    assert "does not divide the GPUs" in misfit(config, geometry, replace(layout, tensor=3))
    assert "data-parallel ranks" in misfit(config, geometry, replace(layout, expert=8))
    wide = replace(layout, devices=1024, tensor=1, pipeline=1)
    assert "than a step has queries" in misfit(config, geometry, wide)


def test_a_token_more_changes_no_layout() -> None:
    """Ranks that do not divide the vocabulary pad it: of 32,001 rows two ranks hold 16,001 each."""
    config = compose(["recipe=sami_mistral"])
    geometry, layout = known(config), replace(layout_of(config), tensor=2, pipeline=1)
    more = replace(geometry, vocab_size=32_001)
    assert misfit(config, more, layout) == ""
    assert enumerate_layouts(config, more, 8, NUMERICS) == enumerate_layouts(config, geometry, 8, NUMERICS)
    held = [count(rank_weights(each, layout, 0)) for each in (geometry, more)]
    # Of the embedding and of the output projection.
    assert held[1] - held[0] == 2 * 4096
    batch = Batch(1, 2, 70, 30, "shared_prefix")
    assert chunk_logits(more, layout, batch) == 120 * 16_001


def test_ranking_is_by_time_and_marks_other_numerics() -> None:
    config = compose(["recipe=sami_mixtral"])
    fitting, too_large, reasons = rank_layouts(config, known(config))
    times = [each.step_s for each in fitting]
    assert all(time is not None for time in times)
    assert times == sorted(times, key=lambda time: time or 0)
    assert all((each.spare_gib or 0) >= 0 for each in fitting) and all((each.spare_gib or 0) < 0 for each in too_large)
    assert {same_numerics(config, each.layout) for each in fitting} == {True, False}
    assert sum(reasons.values()) > 0
    assert [each.layout for each in fitting_layouts(config, known(config))] == [
        each.layout for each in fitting if same_numerics(config, each.layout)
    ]


def test_operations_by_hand() -> None:
    """One layer of mistral-7b: 218,103,808 weights in matrices; three constitutions, 70 + 30 tokens."""
    geometry = known(compose(["recipe=sami_mistral"]))
    matrices = 4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336
    assert matrices == 218_103_808
    assert matrix_flops(geometry, 10) == 2 * 10 * matrices
    # A score and its part of the sum over values.
    assert attention_flops(geometry, 10) == 2 * 10 * 2 * 4096
    plain = Batch(1, 3, 70, 30, "plain")
    assert (group_tokens(plain), head_positions(plain)) == (9 * 100, 9 * 30)
    assert attention_pairs(plain, skip=True) == attention_pairs(plain, skip=False) == 9 * 100**2 / 2
    packed = replace(plain, layout="shared_prefix")
    assert (group_tokens(packed), head_positions(packed)) == (3 * 70 + 9 * 30, 9 * 30)
    # Three rows: the prompt by itself; 90 positions of responses with the prompt and their own, or with the whole row.
    assert attention_pairs(packed, skip=True) == 3 * (70**2 / 2 + 90 * (70 + 15))
    assert attention_pairs(packed, skip=False) == 3 * (70**2 / 2 + 90 * (70 + 90))


def test_activations_by_hand() -> None:
    config = compose(["recipe=sami_mistral"])
    geometry = known(config)
    # Fused, bf16: norms 4 x 4,096; queries, keys, values and context 3 x 4,096 + 3 x 1,024; feed-forward 3 x 14,336.
    layout = replace(layout_of(config), tensor=1, sequence_parallel=False)
    values = 4 * 4096 + 3 * 4096 + 3 * 1024 + 3 * 14336
    plain = Batch(1, 3, 70, 30, "plain")
    packed = replace(plain, layout="shared_prefix")
    assert layer_activations(geometry, layout, plain, GPU) == 900 * (2 * values + 4 * 32)
    assert layer_activations(geometry, layout, packed, GPU) == 480 * (2 * values + 4 * 32)
    # On CPUs packing keeps a second context, cosines and sines twice, and of every row a mask of 90 by 160.
    per_token = layer_activations(geometry, layout, plain, CPU) / 900
    more = 480 * 2 * (4096 + 4 * 128) + 2 * 3 * 90 * 160
    assert layer_activations(geometry, layout, packed, CPU) == pytest.approx(480 * per_token + more)


def test_only_a_chunk_of_logits_exists() -> None:
    config = compose(["recipe=sami_mistral"])
    geometry = known(config)
    layout = replace(layout_of(config), tensor=1, sequence_parallel=False)
    batch = Batch(1, 2, 70, 30, "shared_prefix")
    assert chunk_logits(geometry, layout, batch) == 120 * 32000
    assert chunk_logits(geometry, replace(layout, tensor=2), batch) == 120 * 16000
    longest = longest_batch(config)
    assert chunk_logits(geometry, layout, longest) == CHUNK_LOGITS
    hidden = 2 * 2 * 4096
    assert head_memory(geometry, layout, longest) - hidden * head_positions(longest) == pytest.approx(
        # A chunk's part of the weights' gradient in bf16, the logits in fp32 and their gradient in bf16.
        2 * 32000 * 4096 + 6 * CHUNK_LOGITS
    )


def test_the_planner_knows_the_size_of_a_chunk() -> None:
    """It does not import what needs torch."""
    from sami_nemo.model import response_head

    assert CHUNK_LOGITS == response_head.CHUNK_LOGITS


def test_pipelines_idle_and_keep_more_micro_batches_in_front() -> None:
    config = compose(["recipe=sami_mistral"])
    geometry, batch = known(config), longest_batch(config)
    # 8 ranks in either case; without the output projection the second would take 32 + 3 slots instead of 16, halved twice.
    flat = replace(layout_of(config), tensor=1, pipeline=1, sequence_parallel=False)
    deep = replace(flat, pipeline=4)
    slower = compute_seconds(geometry, deep, batch, config.hardware) / compute_seconds(
        geometry, flat, batch, config.hardware
    )
    assert 67 / 64 < slower < 1.15
    first, last = (activation_peak(geometry, deep, batch, stage, GPU) for stage in (0, 3))
    assert first > 3 * (last - first / 4)


def test_traffic_by_hand() -> None:
    """16 ranks with fp32 gradients: each sends 15/16 of 4 + 2 bytes a parameter; over two nodes, through 8 ports."""
    config = compose(
        ["recipe=sami_mistral", "hardware.nodes=2", "train.tensor_parallel=1", "train.sequence_parallel=false"]
    )
    (data,) = [
        each
        for each in step_traffic(known(config), layout_of(config), longest_batch(config), config.hardware)
        if each.bytes
    ]
    assert data.bytes == pytest.approx(7_241_732_096 * 6 * 15 / 16, rel=1e-6)
    assert data.seconds == pytest.approx(data.bytes / 200e9)
    one_node = compose(["recipe=sami_mistral", "train.tensor_parallel=1", "train.sequence_parallel=false"])
    inside = step_traffic(known(one_node), layout_of(one_node), longest_batch(one_node), one_node.hardware)[0]
    assert inside.seconds == pytest.approx(inside.bytes / 300e9)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["train.precision=fp32", "train.gradients=bf16"], "train.gradients"),
        (["train.master_weights=bf16", "train.gradients=fp32"], "train.gradients"),
    ],
)
def test_gradient_types_that_cannot_work(overrides: list[str], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        check_config(compose(["recipe=sami_mistral", *overrides]))
    assert compose(["recipe=sami_mistral"]).train.gradient_type == "fp32"
    assert compose(["recipe=sami_mistral", "train.master_weights=bf16"]).train.gradient_type == "bf16"
    assert compose(["recipe=sami_mistral", "train.gradients=bf16"]).train.gradient_type == "bf16"


def run_plan(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PLAN), *words], capture_output=True, text=True, check=False)


def test_the_tool_prints_a_plan_and_refuses_in_one_line() -> None:
    done = run_plan("recipe=sami_mistral", "--json", "--prompt-tokens", "550", "--response-tokens", "80")
    facts = json.loads(done.stdout)
    assert facts["fits"] is True
    assert facts["step"]["tokens"] == 128 * (2 * 550 + 4 * 80)
    text = run_plan("recipe=sami_mixtral", "hardware=a100_8", "train.pipeline_parallel=1")
    assert "does NOT fit" in text.stdout and text.returncode == 0
    wrong = run_plan("recipe=sami_mistral", "hardware.efficiency=2")
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1


def test_the_planner_needs_no_torch() -> None:
    code = "import sys, sami_nemo.planner.report, sami_nemo.planner.scaling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.slow
def test_the_table_in_the_documentation_is_the_tools() -> None:
    assert scaling_table() in (REPOSITORY / "docs" / "scaling.md").read_text()


def test_spare_memory_counts_the_margins() -> None:
    """Of 79 GiB, 3 are set aside; the 76 left hold 72.38 GiB of tensors and 5 % of fragmentation."""
    config = compose(["recipe=sami_mistral"])
    assert spare_gib(config, 76 / 1.05 * GIB) == pytest.approx(0.0)
    assert spare_gib(config, 40 * GIB) == pytest.approx(34.0)
