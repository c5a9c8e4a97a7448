"""Tokens, floating-point operations and seconds of a training step, of sampling and of scoring.

A multiplication with its addition counts as two operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sami_nemo.config import Config, HardwareConfig
from sami_nemo.config_checks import PROMPT_ROOM
from sami_nemo.planner.geometry import ModelGeometry
from sami_nemo.planner.layout import Layout

# A causal mask leaves half of the scores; flash attention does not compute the others.
CAUSAL = 0.5


@dataclass(frozen=True)
class Batch:
    """The contrast groups of a step."""

    groups: int
    """Over all data-parallel ranks."""
    constitutions: int
    prompt: int
    """Tokens of the longest prompt."""
    response: int
    """Tokens of the longest response."""

    @property
    def length(self) -> int:
        """Positions of a padded sequence."""
        return self.prompt + self.response

    def micro_batches(self, layout: Layout) -> int:
        """Of each data-parallel rank."""
        return self.groups // (layout.data * layout.micro_batch)


def longest_batch(config: Config) -> Batch:
    """A step whose sequences are all as long as the settings allow: the worst case for memory and time."""
    prompt = config.data.max_query_tokens + PROMPT_ROOM
    train = config.train
    return Batch(train.batch_size, train.constitutions_per_query, prompt, config.generate.max_tokens)


def group_tokens(batch: Batch) -> int:
    """Positions that the model computes for one contrast group: every pair of a constitution and a response, padded."""
    return batch.constitutions**2 * batch.length


def head_positions(batch: Batch) -> int:
    """Positions of one contrast group whose logits are in memory together: all."""
    return group_tokens(batch)


def layer_flops(geometry: ModelGeometry, tokens: int, length: int, causal: bool) -> float:
    """Forward pass of one layer."""
    hidden = geometry.hidden_size
    attention = hidden * (2 * geometry.query_size + 2 * geometry.key_size)
    experts = geometry.experts_per_token * 3 * hidden * geometry.ffn_hidden_size
    router = hidden * (geometry.num_experts or 0)
    scores = 2 * length * geometry.query_size * (CAUSAL if causal else 1)
    return 2 * tokens * (attention + experts + router + scores)


def head_flops(geometry: ModelGeometry, positions: int) -> int:
    """Forward pass of the output projection."""
    return 2 * positions * geometry.hidden_size * geometry.vocab_size


def forward_flops(geometry: ModelGeometry, batch: Batch, causal: bool) -> float:
    """Forward pass of one contrast group through the whole model."""
    layer = layer_flops(geometry, group_tokens(batch), batch.length, causal)
    return geometry.num_layers * layer + head_flops(geometry, group_tokens(batch))


def step_flops(geometry: ModelGeometry, layout: Layout, batch: Batch, causal: bool) -> float:
    """A gradient step over all ranks, recomputed and reference passes included."""
    forward = forward_flops(geometry, batch, causal)
    layers = geometry.num_layers * layer_flops(geometry, group_tokens(batch), batch.length, causal)
    # The backward pass computes gradients of inputs and of weights, each as dear as the forward pass.
    return batch.groups * (forward * (4 if layout.kl else 3) + (layers if layout.checkpointing else 0))


def compute_seconds(geometry: ModelGeometry, layout: Layout, batch: Batch, hardware: HardwareConfig) -> float:
    """Arithmetic of a gradient step on the busiest pipeline stage, idle time of the pipeline included."""
    assert hardware.peak_tflops is not None
    tokens = layout.micro_batch * group_tokens(batch)
    passes = 4 if layout.kl else 3
    layer = layer_flops(geometry, tokens, batch.length, causal=True) / layout.tensor
    stage = geometry.num_layers / layout.pipeline * layer * (passes + layout.checkpointing)
    stage += passes * head_flops(geometry, tokens) / layout.tensor
    # The first micro-batch must reach the last stage before all are busy.
    slots = batch.micro_batches(layout) + layout.pipeline - 1
    return slots * stage / (hardware.peak_tflops * 1e12 * hardware.efficiency)


def training_queries(config: Config) -> int:
    """Contrast groups that all iterations train on."""
    return sum(config.training_steps(n) for n in range(1, config.iterations + 1)) * config.train.batch_size


def gradient_steps(config: Config) -> int:
    """Of all iterations."""
    return sum(config.training_steps(n) for n in range(1, config.iterations + 1))


def evaluation_constitutions(config: Config) -> int:
    """Constitutions of a held-out query."""
    from sami_nemo.constitution.principles import load_principles

    if config.evaluate.constitutions_per_query is not None:
        return config.evaluate.constitutions_per_query
    principles = config.principles
    # A writer is asked for two principles and two antitheses.
    return load_principles(principles.file).count if principles.source == "file" and principles.file else 4


def scoring_batch(config: Config) -> Batch:
    """All held-out queries with their constitutions, at the longest."""
    batch = longest_batch(config)
    constitutions = evaluation_constitutions(config)
    return Batch(config.data.evaluation_queries, constitutions, batch.prompt, batch.response)


def scoring_seconds(geometry: ModelGeometry, layout: Layout, batch: Batch, hardware: HardwareConfig) -> float:
    """Evaluation of one model: forward passes over all devices."""
    assert hardware.peak_tflops is not None
    flops = batch.groups * forward_flops(geometry, batch, causal=True)
    return flops / (layout.devices * hardware.peak_tflops * 1e12 * hardware.efficiency)


def sampled_requests(config: Config, iteration: int) -> int:
    """Responses that the model of `iteration` is asked for."""
    held_out = config.data.evaluation_queries * evaluation_constitutions(config)
    if iteration == config.iterations:
        return held_out
    groups = config.training_steps(iteration + 1) * config.train.batch_size
    return held_out + math.ceil(groups * config.generate.oversample) * config.train.constitutions_per_query


def sampling_seconds(geometry: ModelGeometry, config: Config, requests: int, together: int, batch: Batch) -> float:
    """Sampling with one engine: prompts by arithmetic, responses token by token by memory bandwidth.

    Args:
        together: requests that the engine works on at the same time.
    """
    from sami_nemo.planner.engine import cache_bytes_per_token, engine_weight_bytes

    hardware, gpus = config.hardware, config.generate.tensor_parallel
    assert hardware.peak_tflops is not None and hardware.memory_gb_s is not None
    prompts = Batch(requests, 1, batch.prompt, 0)
    rate = gpus * hardware.peak_tflops * 1e12 * hardware.efficiency
    prefill = requests * forward_flops(geometry, prompts, causal=True) / rate
    token = layer_flops(geometry, 1, batch.length, causal=False) * geometry.num_layers + head_flops(geometry, 1)
    # Each step reads all weights, and the keys and values of half of its responses' and all of their prompts' tokens.
    cached = together * (batch.prompt + batch.response / 2) * cache_bytes_per_token(geometry, config)
    read = (engine_weight_bytes(geometry, config) + cached) / (hardware.memory_gb_s * 1e9)
    step = max(read, together * token / rate)
    return prefill + math.ceil(requests / together) * batch.response * step
