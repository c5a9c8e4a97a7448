"""Tokens, floating-point operations and seconds of a training step, of sampling and of scoring.

A multiplication with its addition counts as two operations.
"""

from __future__ import annotations

import math

from sami_nemo.config.machine import HardwareConfig
from sami_nemo.config.schema import Config
from sami_nemo.geometry import Geometry
from sami_nemo.planner.batch import Batch, evaluation_constitutions, group_tokens, head_positions
from sami_nemo.planner.engine import cache_bytes_per_token, engine_weight_bytes
from sami_nemo.planner.layout import Layout

# A causal mask leaves half of the scores; flash attention does not compute the others.
CAUSAL = 0.5
# Of forward passes. The backward pass computes gradients of inputs and of weights, each as dear as the forward pass;
# flash attention's five products of its kind instead of two, of the head also the logits once more.
MATRIX_PASSES = 3
ATTENTION_PASSES = 3.5
HEAD_PASSES = 4


def attention_pairs(batch: Batch, skip: bool) -> float:
    """Queries and keys of one contrast group that attention multiplies.

    Args:
        skip: whether the blocks of a row in which nothing is seen are left out, as on GPUs; on CPUs the responses of a row
            are multiplied with all of it.
    """
    if batch.layout == "plain":
        return batch.constitutions**2 * batch.length**2 * CAUSAL
    responses = batch.constitutions * batch.response
    seen = batch.prompt + (batch.response * CAUSAL if skip else responses)
    return batch.constitutions * (batch.prompt**2 * CAUSAL + responses * seen)


def matrix_flops(geometry: Geometry, tokens: int) -> int:
    """Forward pass of `tokens` positions through the weights of one layer."""
    hidden = geometry.hidden_size
    attention = hidden * (2 * geometry.query_size + 2 * geometry.key_size)
    experts = geometry.experts_per_token * 3 * hidden * geometry.ffn_hidden_size
    router = hidden * (geometry.num_experts or 0)
    return 2 * tokens * (attention + experts + router)


def attention_flops(geometry: Geometry, pairs: float) -> float:
    """Forward pass of one layer's scores and of the values that they weigh."""
    return 4 * pairs * geometry.query_size


def head_flops(geometry: Geometry, positions: int) -> int:
    """Forward pass of the output projection."""
    return 2 * positions * geometry.hidden_size * geometry.vocab_size


def forward_flops(geometry: Geometry, batch: Batch, skip: bool) -> float:
    """Forward pass of one contrast group through the whole model; `skip` as in `attention_pairs`."""
    layer = matrix_flops(geometry, group_tokens(batch)) + attention_flops(geometry, attention_pairs(batch, skip))
    return geometry.num_layers * layer + head_flops(geometry, head_positions(batch))


def trained_layer_flops(geometry: Geometry, layout: Layout, batch: Batch, skip: bool) -> float:
    """One layer's part of a gradient step for one contrast group, recomputed and reference passes included."""
    more = layout.kl + layout.checkpointing
    matrices = matrix_flops(geometry, group_tokens(batch))
    attention = attention_flops(geometry, attention_pairs(batch, skip))
    return matrices * (MATRIX_PASSES + more) + attention * (ATTENTION_PASSES + more)


def trained_head_flops(geometry: Geometry, layout: Layout, batch: Batch) -> float:
    """The output projection's part of the same."""
    return head_flops(geometry, head_positions(batch)) * (HEAD_PASSES + layout.kl)


def step_flops(geometry: Geometry, layout: Layout, batch: Batch, skip: bool) -> float:
    """A gradient step over all ranks; `skip` as in `attention_pairs`."""
    layers = geometry.num_layers * trained_layer_flops(geometry, layout, batch, skip)
    return batch.groups * (layers + trained_head_flops(geometry, layout, batch))


def compute_seconds(geometry: Geometry, layout: Layout, batch: Batch, hardware: HardwareConfig) -> float:
    """Arithmetic of a gradient step on the busiest pipeline stage, idle time of the pipeline included."""
    assert hardware.peak_tflops is not None
    layers = geometry.num_layers / layout.pipeline * trained_layer_flops(geometry, layout, batch, skip=True)
    stage = layout.micro_batch * (layers + trained_head_flops(geometry, layout, batch)) / layout.tensor
    # The first micro-batch must reach the last stage before all are busy.
    slots = layout.micro_batches(batch) + layout.pipeline - 1
    return slots * stage / (hardware.peak_tflops * 1e12 * hardware.efficiency)


def training_queries(config: Config) -> int:
    """Contrast groups that all iterations train on."""
    return sum(config.training_steps(n) for n in range(1, config.iterations + 1)) * config.train.batch_size


def gradient_steps(config: Config) -> int:
    """Of all iterations."""
    return sum(config.training_steps(n) for n in range(1, config.iterations + 1))


def scoring_seconds(geometry: Geometry, layout: Layout, batch: Batch, hardware: HardwareConfig) -> float:
    """Evaluation of one model: forward passes over all devices."""
    assert hardware.peak_tflops is not None
    flops = batch.groups * forward_flops(geometry, batch, skip=True)
    return flops / (layout.devices * hardware.peak_tflops * 1e12 * hardware.efficiency)


def sampled_requests(config: Config, iteration: int) -> int:
    """Responses that the model of `iteration` is asked for."""
    held_out = config.data.evaluation_queries * evaluation_constitutions(config)
    if iteration == config.iterations:
        return held_out
    groups = config.training_steps(iteration + 1) * config.train.batch_size
    return held_out + math.ceil(groups * config.generate.oversample) * config.train.constitutions_per_query


def sampling_seconds(geometry: Geometry, config: Config, requests: int, together: int, batch: Batch) -> float:
    """Sampling with one engine: prompts by arithmetic, responses token by token by memory bandwidth.

    Args:
        together: requests that the engine works on at the same time.
    """
    hardware, gpus = config.hardware, config.generate.tensor_parallel
    assert hardware.peak_tflops is not None and hardware.memory_gb_s is not None
    # No vocabulary projection but at the last position.
    prompt = Batch(1, 1, batch.prompt, 0, "plain")
    rate = gpus * hardware.peak_tflops * 1e12 * hardware.efficiency
    prefill = requests * forward_flops(geometry, prompt, skip=True) / rate
    layer = matrix_flops(geometry, 1) + attention_flops(geometry, batch.length)
    token = layer * geometry.num_layers + head_flops(geometry, 1)
    # Each step reads all weights, and the keys and values of half of its responses' and all of their prompts' tokens.
    cached = together * (batch.prompt + batch.response / 2) * cache_bytes_per_token(geometry, config)
    read = (engine_weight_bytes(geometry, config) + cached) / (hardware.memory_gb_s * 1e9)
    step = max(read, together * token / rate)
    return prefill + math.ceil(requests / together) * batch.response * step
