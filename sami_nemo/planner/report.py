"""The planner's answers as text: the plan of one configuration, and the table of many sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sami_nemo.config.schema import Config
from sami_nemo.geometry import Geometry
from sami_nemo.planner.batch import Batch, group_tokens, longest_batch, scoring_batch
from sami_nemo.planner.communication import step_traffic
from sami_nemo.planner.compute import gradient_steps, sampled_requests, sampling_seconds, scoring_seconds, step_flops
from sami_nemo.planner.engine import (
    GIB,
    cache_bytes,
    cache_bytes_per_token,
    engine_weight_bytes,
    engines_at_once,
    requests_together,
)
from sami_nemo.planner.fit import disk_bytes, export_bytes, host_stages, scoring_peak, training_checkpoint_bytes
from sami_nemo.planner.layout import Layout, layout_of
from sami_nemo.planner.layouts import Estimate, estimate, rank_layouts, same_numerics
from sami_nemo.planner.memory import FRAGMENTATION, RESERVED_GIB
from sami_nemo.planner.parameters import active_parameters, total_parameters

SHOWN_LAYOUTS = 12
HOUR = 3600
Facts = dict[str, Any]
"""Numbers of one subject by name; bytes, seconds or counts, as the name says."""


def plan(config: Config, geometry: Geometry, batch: Batch) -> dict[str, Any]:
    """Everything the planner knows about a configuration, for machines.

    Args:
        batch: lengths for the times; memory is always that of the longest sequences.
    """
    chosen = estimate(config, geometry, layout_of(config), batch)
    fitting, too_large, impossible = rank_layouts(config, geometry, batch=batch)
    return {
        "parameters": {"total": total_parameters(geometry), "active": active_parameters(geometry)},
        "memory": memory_facts(config, geometry, chosen),
        "engine": engine_facts(config, geometry),
        "host": host_stages(config, geometry),
        "disk": disk_facts(config, geometry),
        "step": step_facts(config, geometry, chosen, batch),
        "stages": stage_facts(config, geometry, chosen, batch),
        "fits": chosen.fits,
        "spare_gib": chosen.spare_gib,
        "layouts": [layout_facts(config, each) for each in fitting[:SHOWN_LAYOUTS]],
        "too_large": [layout_facts(config, each) for each in too_large],
        "impossible": dict(impossible),
    }


def memory_facts(config: Config, geometry: Geometry, chosen: Estimate) -> Facts:
    """Bytes of the worst rank."""
    memory = chosen.memory
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "activations": memory.activations,
        "copies in the optimizer step": memory.update,
        "peak in training": memory.peak,
        "peak in evaluation": scoring_peak(config, geometry, chosen.layout),
        "moment": memory.moment,
    }


def engine_facts(config: Config, geometry: Geometry) -> Facts:
    """Bytes on each GPU of a vLLM engine."""
    longest = config.generate.max_model_len
    return {
        "weights": engine_weight_bytes(geometry, config),
        "keys and values": cache_bytes(geometry, config),
        "bytes per token": cache_bytes_per_token(geometry, config),
        "longest requests together": requests_together(geometry, config, longest),
    }


def disk_facts(config: Config, geometry: Geometry) -> Facts:
    """Bytes in the run's directory."""
    return {
        "export of an iteration": export_bytes(config, geometry),
        "training checkpoint": training_checkpoint_bytes(config, geometry),
        "run": disk_bytes(config),
    }


def step_facts(config: Config, geometry: Geometry, chosen: Estimate, batch: Batch) -> Facts:
    """Tokens, operations, seconds and traffic of a gradient step."""
    traffic = step_traffic(geometry, chosen.layout, batch, config.hardware)
    return {
        "tokens": batch.groups * group_tokens(batch),
        "flops": step_flops(geometry, chosen.layout, batch, skip=config.hardware.accelerator == "gpu"),
        "seconds": chosen.step_s,
        "compute_s": chosen.compute_s,
        "communication_s": chosen.communication_s,
        "update_s": chosen.update_s,
        "traffic": [{"name": each.name, "bytes": each.bytes, "seconds": each.seconds} for each in traffic],
    }


def stage_facts(config: Config, geometry: Geometry, chosen: Estimate, batch: Batch) -> list[Facts]:
    """Seconds and GPU-hours of the run's stages that use GPUs; empty if the hardware's rates are not known."""
    hardware = config.hardware
    if chosen.step_s is None or hardware.peak_tflops is None or hardware.memory_gb_s is None:
        return []
    devices = chosen.layout.devices
    training = gradient_steps(config) * chosen.step_s
    held_out = replace(scoring_batch(config), prompt=batch.prompt, response=batch.response)
    scoring = (config.iterations + 1) * scoring_seconds(geometry, chosen.layout, held_out, hardware)
    engine = sum(_engine_seconds(config, geometry, n, batch) for n in range(config.iterations + 1))
    engines = config.generate.engines
    rounds = math.ceil(engines / engines_at_once(config))
    return [
        {"stage": "train", "seconds": training, "gpu_hours": training * devices / HOUR},
        {"stage": "evaluate", "seconds": scoring, "gpu_hours": scoring * devices / HOUR},
        {
            "stage": "sample",
            "seconds": engine * rounds,
            "gpu_hours": engine * engines * config.generate.tensor_parallel / HOUR,
        },
    ]


def _engine_seconds(config: Config, geometry: Geometry, iteration: int, batch: Batch) -> float:
    """Of one engine with its share of an iteration's requests."""
    requests = math.ceil(sampled_requests(config, iteration) / config.generate.engines)
    together = min(requests_together(geometry, config, batch.length), requests)
    return sampling_seconds(geometry, config, requests, together, batch)


def layout_facts(config: Config, each: Estimate) -> Facts:
    """A layout in a row of the ranking."""
    layout = each.layout
    return {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "expert": layout.expert,
        "data": layout.data,
        "micro_batch": layout.micro_batch,
        "checkpointing": layout.checkpointing,
        "master_weights": layout.masters,
        "gradients": layout.gradients,
        "same_numerics": same_numerics(config, layout),
        "step_s": each.step_s,
        "peak_bytes": each.peak,
        "spare_gib": each.spare_gib,
    }


def render(config: Config, facts: dict[str, Any], batch: Batch) -> str:
    """The plan as text."""
    hardware = config.hardware
    title = (
        f"{config.recipe}: {config.model.name} on {hardware.nodes} x {hardware.devices_per_node} of {hardware.name}, "
        f"{describe(layout_of(config))}"
    )
    longest = longest_batch(config)
    lengths = f"memory for prompts of {longest.prompt} and responses of {longest.response} tokens, the longest allowed"
    if (batch.prompt, batch.response) != (longest.prompt, longest.response):
        lengths += f"; times for {batch.prompt} and {batch.response}"
    parameters = facts["parameters"]
    blocks = [
        f"{title}\n{lengths}",
        f"parameters {parameters['total'] / 1e9:.3f} B, active for a token {parameters['active'] / 1e9:.3f} B",
        "Training memory of the worst rank\n" + _lines(_sizes(facts["memory"])),
        "Memory of each GPU of a vLLM engine\n" + _lines(_engine(facts["engine"])),
        "Host memory of a node, by stage\n" + _lines(_sizes(facts["host"])),
        "Disk\n" + _lines(_sizes(facts["disk"])),
        "A gradient step\n" + _lines(_step(facts["step"])),
        "The run\n" + _stages(facts["stages"]),
        _verdict(config, facts),
        _ranking(facts["layouts"]),
        _rejected(config, facts),
    ]
    return "\n\n".join(blocks)


def describe(layout: Layout) -> str:
    """TP, PP, EP, DP and what else memory depends on, in a line."""
    checkpointing = ", checkpointing" if layout.checkpointing else ""
    return (
        f"TP {layout.tensor} PP {layout.pipeline} EP {layout.expert} DP {layout.data}, micro-batch {layout.micro_batch}"
        f"{checkpointing}, masters {layout.masters}, gradients {layout.gradients}"
    )


def gib(size: float | None) -> str:
    """Bytes in GiB with one decimal."""
    return "not known" if size is None else f"{size / GIB:.1f} GiB"


def _sizes(facts: Facts) -> list[tuple[str, str]]:
    return [(name, value if isinstance(value, str) else gib(value)) for name, value in facts.items()]


def _engine(facts: Facts) -> list[tuple[str, str]]:
    return [
        ("weights", gib(facts["weights"])),
        ("room for keys and values", gib(facts["keys and values"])),
        ("keys and values of a token", f"{facts['bytes per token'] / 1024:.0f} KiB"),
        ("requests of the longest kind at a time", str(facts["longest requests together"])),
    ]


def _step(facts: Facts) -> list[tuple[str, str]]:
    rows = [("tokens", f"{facts['tokens']:,}"), ("operations", f"{facts['flops'] / 1e15:.3g} PFLOP")]
    if facts["seconds"] is not None:
        parts = f"arithmetic {facts['compute_s']:.1f}, communication {facts['communication_s']:.1f}"
        rows.append(("seconds", f"{facts['seconds']:.1f}: {parts}, optimizer {facts['update_s']:.2f}"))
    for each in facts["traffic"]:
        if each["bytes"]:
            seconds = "" if each["seconds"] is None else f", {each['seconds']:.2f} s"
            rows.append((f"sent for {each['name']}", f"{gib(each['bytes'])} per rank{seconds}"))
    return rows


def _stages(stages: Sequence[Facts]) -> str:
    if not stages:
        return "  times are not known: hardware.peak_tflops, memory_gb_s, link_gb_s and network_gb_s give them"
    rows = [(each["stage"], f"{each['seconds'] / 60:.0f} min, {each['gpu_hours']:.1f} GPU-hours") for each in stages]
    total = sum(each["gpu_hours"] for each in stages)
    return _lines([*rows, ("together", f"{total:.1f} GPU-hours, without loading, export, verification and the judge")])


def _verdict(config: Config, facts: dict[str, Any]) -> str:
    margin = f"{RESERVED_GIB:.0f} GiB for CUDA and NCCL and {FRAGMENTATION:.0%} for fragmentation are set aside"
    if facts["spare_gib"] is None:
        return "Whether it fits is not known: hardware.gpu_memory_gib is null."
    memory = config.hardware.gpu_memory_gib
    if facts["fits"]:
        return f"It fits {memory} GiB, with {facts['spare_gib']:.1f} to spare; {margin}."
    return f"It does NOT fit {memory} GiB: {-facts['spare_gib']:.1f} are missing; {margin}."


RANKING = ("TP", "PP", "EP", "DP", "micro", "ckpt", "masters", "grads", "step", "spare", "")


def _ranking(layouts: Sequence[Facts]) -> str:
    if not layouts:
        return "No layout fits."
    rows = [
        (
            *(str(each[name]) for name in ("tensor", "pipeline", "expert", "data", "micro_batch")),
            "yes" if each["checkpointing"] else "no",
            each["master_weights"],
            each["gradients"],
            "?" if each["step_s"] is None else f"{each['step_s']:.1f} s",
            "?" if each["spare_gib"] is None else f"{each['spare_gib']:.0f} GiB",
            "" if each["same_numerics"] else "other numerics",
        )
        for each in layouts
    ]
    return "Layouts that fit, fastest first\n" + table([RANKING, *rows])


def _rejected(config: Config, facts: dict[str, Any]) -> str:
    """Why layouts were left out, grouped."""
    rows = [(reason, f"{number} combinations") for reason, number in sorted(facts["impossible"].items())]
    groups: dict[str, list[float]] = {}
    for each in facts["too_large"]:
        if each["same_numerics"]:
            name = f"TP {each['tensor']} PP {each['pipeline']} EP {each['expert']}: too much memory"
            groups.setdefault(name, []).append(-each["spare_gib"])
    for name, missing in groups.items():
        # The others differ in micro-batch and checkpointing.
        rows.append((name, f"by {min(missing):.1f} GiB or more in {len(missing)} of its variants"))
    return "Layouts that do not work\n" + (_lines(rows) if rows else "  none")


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Columns of even width."""
    listed = [tuple(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*listed, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in listed)
    return "\n".join(f"  {line}".rstrip() for line in lines)
