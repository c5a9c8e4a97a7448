"""The table of docs/scaling.md: the best layout of each model from 8 to 1,024 GPUs."""

from __future__ import annotations

from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.geometry import Geometry
from sami_nemo.planner.compute import gradient_steps
from sami_nemo.planner.engine import GIB
from sami_nemo.planner.layouts import Estimate, rank_layouts, stated_numerics
from sami_nemo.planner.report import HOUR

RECIPES = ("sami_mistral", "sami_mixtral", "sami_mixtral_8x22b")
HARDWARE = "a100_8"
DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)
HEADER = (
    "model",
    "GPUs",
    "TP",
    "PP",
    "EP",
    "DP",
    "micro-batch",
    "checkpointing",
    "GiB per GPU",
    "step",
    "GPU-hours",
    "limited by",
)


def scaling_table() -> str:
    """Markdown: a row for each recipe's model and number of GPUs."""
    rows: list[tuple[str, ...]] = [HEADER]
    for recipe in RECIPES:
        for devices in DEVICES:
            config = compose([f"recipe={recipe}", f"hardware={HARDWARE}", f"hardware.nodes={devices // 8}"])
            geometry = base_geometry(config.model)
            assert geometry is not None, f"{recipe} states its geometry"
            rows.append(_row(config, geometry, devices))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def _row(config: Config, geometry: Geometry, devices: int) -> tuple[str, ...]:
    fitting, too_large, _ = rank_layouts(config, geometry, devices, numerics=(stated_numerics(config),))
    name, count = config.model.name, f"{devices:,}"
    if not fitting:
        missing = min(-(each.spare_gib or 0) for each in too_large)
        others = rank_layouts(config, geometry, devices)[0]
        other = f"; masters in {others[0].layout.masters} and gradients in bf16 fit" if others else ""
        return (name, count, *["–"] * (len(HEADER) - 3), f"memory: {missing:.0f} GiB per GPU are missing{other}")
    best, layout = fitting[0], fitting[0].layout
    assert best.step_s is not None
    hours = best.step_s * gradient_steps(config) * devices / HOUR
    return (
        name,
        count,
        *(str(size) for size in (layout.tensor, layout.pipeline, layout.expert, layout.data, layout.micro_batch)),
        "yes" if layout.checkpointing else "no",
        f"{best.peak / GIB:.0f}",
        f"{best.step_s:.1f} s",
        f"{hours:.1f}",
        _limit(config, best),
    )


def _limit(config: Config, best: Estimate) -> str:
    """What takes the time, and what stops more data parallelism."""
    assert best.compute_s is not None and best.communication_s is not None and best.step_s is not None
    layout = best.layout
    micro_batches = config.train.batch_size // (layout.data * layout.micro_batch)
    idle = (layout.pipeline - 1) / (micro_batches + layout.pipeline - 1)
    parts = {
        "arithmetic": best.compute_s * (1 - idle),
        "pipeline idle": best.compute_s * idle,
        "communication": best.communication_s,
    }
    largest = max(parts, key=lambda name: parts[name])
    words = f"{largest} {parts[largest] / best.step_s:.0%}"
    return words + (", batch: one group per rank" if layout.data == config.train.batch_size else "")
