"""All layouts of a model on a number of devices: which ones work, which fit, and how fast they are."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sami_nemo.config.machine import HardwareConfig
from sami_nemo.config.schema import Config
from sami_nemo.geometry import Geometry
from sami_nemo.planner.batch import Batch, longest_batch, scoring_batch
from sami_nemo.planner.communication import step_traffic
from sami_nemo.planner.compute import compute_seconds
from sami_nemo.planner.layout import Layout, layout_of
from sami_nemo.planner.memory import RankMemory, kernels_of, optimizer_bytes, scoring_memory, spare_gib, worst_rank
from sami_nemo.planner.parameters import buffers, rank_weights, shards

MICRO_BATCHES = (1, 2, 4, 8)
# Masters and gradients, as far as `check_precision` lets them go together.
Numerics = tuple[Literal["fp32", "bf16"], Literal["fp32", "bf16"]]
NUMERICS: tuple[Numerics, ...] = (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"))
# More nodes than this are not looked at when asked how many a run needs.
MOST_NODES = 128


@dataclass(frozen=True)
class Estimate:
    """What a layout costs."""

    layout: Layout
    memory: RankMemory
    """Of the worst rank in training."""
    peak: float
    """Bytes of the worst rank in training or evaluation."""
    spare_gib: float | None
    """Free on a GPU, after what is held besides tensors; None if the GPU's memory is not known."""
    compute_s: float | None
    communication_s: float | None
    update_s: float | None

    @property
    def step_s(self) -> float | None:
        """Seconds of a gradient step; None if the hardware's rates are not known."""
        if self.compute_s is None or self.communication_s is None or self.update_s is None:
            return None
        return self.compute_s + self.communication_s + self.update_s

    @property
    def fits(self) -> bool:
        return self.spare_gib is None or self.spare_gib >= 0


def estimate(config: Config, geometry: Geometry, layout: Layout, batch: Batch | None = None) -> Estimate:
    """Memory for the longest sequences that the settings allow, and time for those of `batch` (default: the same)."""
    kernels, hardware = kernels_of(config), config.hardware
    memory = worst_rank(geometry, layout, longest_batch(config), kernels)
    peak = max(memory.peak, scoring_memory(geometry, layout, scoring_batch(config), kernels))
    batch = batch or longest_batch(config)
    seconds = [traffic.seconds for traffic in step_traffic(geometry, layout, batch, hardware)]
    known = [each for each in seconds if each is not None]
    return Estimate(
        layout=layout,
        memory=memory,
        peak=peak,
        spare_gib=spare_gib(config, peak),
        compute_s=compute_seconds(geometry, layout, batch, hardware) if hardware.peak_tflops else None,
        communication_s=sum(known) if len(known) == len(seconds) else None,
        update_s=update_seconds(config, geometry, layout, hardware),
    )


def update_seconds(config: Config, geometry: Geometry, layout: Layout, hardware: HardwareConfig) -> float | None:
    """The optimizer step: gradients are read and cleared, and states and weights read and written, once each."""
    if hardware.memory_gb_s is None:
        return None
    held = buffers(rank_weights(geometry, layout, 0), layout)
    state = shards(held, layout).total * (optimizer_bytes(layout, kernels_of(config)) + layout.weight_bytes)
    return (2 * held.total * layout.gradient_bytes + 2 * state) / (hardware.memory_gb_s * 1e9)


def enumerate_layouts(
    config: Config, geometry: Geometry, devices: int, numerics: Sequence[Numerics]
) -> tuple[list[Layout], Counter[str]]:
    """Every layout that Megatron can run, and how many others there are for each reason why it cannot.

    Tensor-parallel groups stay inside a node: between nodes they would send every activation over the network.
    """
    stated = replace(layout_of(config), devices=devices)
    layouts: list[Layout] = []
    reasons: Counter[str] = Counter()
    tensors = _powers_of_two(min(config.hardware.devices_per_node, devices))
    experts = _divisors(geometry.num_experts or 1)
    for tensor, pipeline, expert in itertools.product(tensors, _divisors(geometry.num_layers), experts):
        for micro_batch in MICRO_BATCHES:
            layout = replace(
                stated,
                tensor=tensor,
                pipeline=pipeline,
                expert=expert,
                micro_batch=micro_batch,
                sequence_parallel=tensor > 1,
                dispatcher="alltoall",
            )
            reason = misfit(config, geometry, layout)
            if reason:
                reasons[reason] += 1
            else:
                layouts += _variants(layout, numerics)
    return layouts, reasons


def _variants(layout: Layout, numerics: Sequence[Numerics]) -> list[Layout]:
    """With and without activation checkpointing, in every numerics."""
    return [
        replace(layout, checkpointing=checkpointing, masters=masters, gradients=gradients)
        for checkpointing in (False, True)
        for masters, gradients in numerics
    ]


def misfit(config: Config, geometry: Geometry, layout: Layout) -> str:
    """Why Megatron cannot run the layout; empty if it can."""
    model_parallel = layout.tensor * layout.pipeline
    if layout.devices % model_parallel:
        return "tensor x pipeline parallel does not divide the GPUs"
    for name, size in (
        ("attention heads", geometry.num_attention_heads),
        ("key-value heads", geometry.num_key_value_heads),
        ("feed-forward width", geometry.ffn_hidden_size),
    ):
        if size % layout.tensor:
            return f"tensor parallel does not divide the {name}"
    if layout.data % layout.expert:
        return "expert parallel does not divide the data-parallel ranks"
    together = layout.data * layout.micro_batch
    if config.train.batch_size % together:
        large = together > config.train.batch_size
        return "more micro-batches at once than a step has queries" if large else "ranks do not divide the batch"
    return ""


def _powers_of_two(largest: int) -> list[int]:
    return [2**i for i in range(largest.bit_length())]


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def stated_numerics(config: Config) -> Numerics:
    """Masters and gradients of the configuration."""
    return config.train.master_weights, config.train.gradient_type


def same_numerics(config: Config, layout: Layout) -> bool:
    """Whether the layout computes what the configuration says: other masters or gradients change results."""
    return (layout.masters, layout.gradients) == stated_numerics(config)


def rank_layouts(
    config: Config,
    geometry: Geometry,
    devices: int | None = None,
    batch: Batch | None = None,
    numerics: Sequence[Numerics] = NUMERICS,
) -> tuple[list[Estimate], list[Estimate], Counter[str]]:
    """Layouts that fit, fastest first; those that have not enough memory; and reasons why others cannot run."""
    devices = devices or layout_of(config).devices
    if config.train.precision == "fp32":
        numerics = (stated_numerics(config),)
    layouts, reasons = enumerate_layouts(config, geometry, devices, numerics)
    estimates = [estimate(config, geometry, layout, batch) for layout in layouts]
    fitting = sorted((each for each in estimates if each.fits), key=_order)
    return fitting, [each for each in estimates if not each.fits], reasons


def _order(each: Estimate) -> tuple[float, float]:
    """By time; where that is not known or equal, the smaller first."""
    return (each.step_s or 0.0, each.peak)


def fitting_layouts(config: Config, geometry: Geometry, devices: int | None = None) -> list[Estimate]:
    """Layouts that fit without a change of numerics, fastest first."""
    return rank_layouts(config, geometry, devices, numerics=(stated_numerics(config),))[0]


def nodes_needed(config: Config, geometry: Geometry) -> tuple[int, Estimate] | None:
    """The smallest number of nodes, a power of two, with a layout that fits without a change of numerics."""
    nodes = 1
    while nodes <= MOST_NODES:
        fitting = fitting_layouts(config, geometry, nodes * config.hardware.devices_per_node)
        if fitting:
            return nodes, fitting[0]
        nodes *= 2
    return None
