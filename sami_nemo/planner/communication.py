"""Bytes that a rank sends in a gradient step, and the seconds that takes; nothing is overlapped with arithmetic.

Megatron numbers ranks tensor-parallel first, then expert- and data-parallel, then pipeline-parallel, and nodes hold
consecutive ranks. A group inside a node uses `hardware.link_gb_s`. A ring over several nodes leaves each of them through
the network ports of all its members there; all-to-all messages and pipeline stages use a rank's own port.
"""

from __future__ import annotations

from dataclasses import dataclass

from sami_nemo.config.machine import HardwareConfig
from sami_nemo.geometry import Geometry
from sami_nemo.planner.batch import Batch, group_tokens
from sami_nemo.planner.layout import Layout
from sami_nemo.planner.parameters import largest_buffers


@dataclass(frozen=True)
class Traffic:
    """What one kind of parallelism sends."""

    name: str
    bytes: float
    """Of a rank in a step."""
    seconds: float | None
    """None if the bandwidths are not known."""


def step_traffic(geometry: Geometry, layout: Layout, batch: Batch, hardware: HardwareConfig) -> tuple[Traffic, ...]:
    """The communication of a gradient step, of the busiest rank."""
    slots = layout.micro_batches(batch) + layout.pipeline - 1
    return (
        *_data_parallel(geometry, layout, hardware),
        *_tensor_parallel(geometry, layout, batch, hardware, slots),
        *_expert_parallel(geometry, layout, batch, hardware, slots),
        *_pipeline(geometry, layout, batch, hardware, slots),
    )


def _ring(name: str, sent: float, members: int, stride: int, layout: Layout, hardware: HardwareConfig) -> Traffic:
    """A ring collective over `members` ranks, `stride` apart; `sent` is what a rank sends in it."""
    link, network = hardware.link_gb_s, hardware.network_gb_s
    inside = members * stride <= layout.devices_per_node
    if members == 1:
        return Traffic(name, 0.0, 0.0)
    if link is None or (network is None and not inside):
        return Traffic(name, sent, None)
    bandwidth = link
    if not inside:
        assert network is not None
        ports = max(1, layout.devices_per_node // stride)
        bandwidth = min(link, ports * network)
    return Traffic(name, sent, sent / (bandwidth * 1e9))


def _data_parallel(geometry: Geometry, layout: Layout, hardware: HardwareConfig) -> list[Traffic]:
    """Gradients are summed and, with the distributed optimizer, updated weights gathered; once in a step."""
    held = largest_buffers(geometry, layout)
    # A reduce-scatter or all-gather sends (n - 1) / n of a buffer; an all-reduce is both.
    size = layout.gradient_bytes + (layout.weight_bytes if layout.distributed_optimizer else layout.gradient_bytes)
    parts = [("gradients and weights (DP)", held.dense, layout.data, layout.tensor)]
    if held.expert:
        stride = layout.tensor * layout.expert
        parts.append(("experts' gradients and weights (DP)", held.expert, layout.expert_data, stride))
    return [
        _ring(name, elements * size * (members - 1) / members, members, stride, layout, hardware)
        for name, elements, members, stride in parts
    ]


def _tensor_parallel(
    geometry: Geometry, layout: Layout, batch: Batch, hardware: HardwareConfig, slots: int
) -> list[Traffic]:
    """Each block (attention, feed-forward) gathers its input and scatters its sum, or all-reduces the sum.

    With sequence parallelism the forward pass takes a gather and a scatter, the backward pass another of each, and
    gathers the input again for the gradient of the weights. An all-reduce sends as much as a gather and a scatter.
    """
    tensor = layout.tensor
    if tensor == 1:
        return []
    once = _hidden_bytes(geometry, layout, batch) * (tensor - 1) / tensor
    forward, backward = 2, 3 if layout.sequence_parallel else 2
    per_block = forward * (2 if layout.checkpointing else 1) + backward
    share = geometry.experts_per_token if geometry.num_experts is not None else 1
    # Experts' inputs and outputs are the tokens times the experts of each; they are not gathered again.
    blocks = per_block + (per_block if share == 1 else share * (per_block - 1))
    layers = geometry.num_layers // layout.pipeline
    # Embedding and output projection add about one block.
    sent = slots * once * (layers * blocks + per_block)
    return [_ring("activations (TP)", sent, tensor, 1, layout, hardware)]


def _expert_parallel(
    geometry: Geometry, layout: Layout, batch: Batch, hardware: HardwareConfig, slots: int
) -> list[Traffic]:
    """Tokens travel to their experts and back, in the forward and in the backward pass."""
    expert = layout.expert
    if expert == 1 or geometry.num_experts is None:
        return []
    local = _hidden_bytes(geometry, layout, batch) / layout.sequence_shards
    passes = 3 if layout.checkpointing else 2
    layers = geometry.num_layers // layout.pipeline
    if layout.dispatcher == "allgather":
        # Everyone gets every token of the group, and sums are scattered back.
        sent = slots * layers * passes * 2 * local * (expert - 1)
        return [_ring("tokens to experts (EP)", sent, expert, layout.tensor, layout, hardware)]
    sent = slots * layers * passes * 2 * local * geometry.experts_per_token * (expert - 1) / expert
    near = max(1, min(expert, layout.devices_per_node // layout.tensor))
    far = sent * (expert - near) / (expert - 1)
    return [Traffic("tokens to experts (EP)", sent, _point_to_point(sent - far, far, hardware))]


def _pipeline(geometry: Geometry, layout: Layout, batch: Batch, hardware: HardwareConfig, slots: int) -> list[Traffic]:
    """A stage between two others sends activations on and gradients back."""
    if layout.pipeline == 1:
        return []
    directions = 2 if layout.pipeline > 2 else 1
    sent = slots * directions * _hidden_bytes(geometry, layout, batch) / layout.sequence_shards
    near = 2 * layout.tensor * layout.data <= layout.devices_per_node
    return [Traffic("activations (PP)", sent, _point_to_point(sent if near else 0, 0 if near else sent, hardware))]


def _hidden_bytes(geometry: Geometry, layout: Layout, batch: Batch) -> float:
    """Hidden states of a micro-batch."""
    return layout.micro_batch * group_tokens(batch) * geometry.hidden_size * layout.weight_bytes


def _point_to_point(near: float, far: float, hardware: HardwareConfig) -> float | None:
    """Seconds of messages inside the node and to others, which do not wait for each other."""
    link, network = hardware.link_gb_s, hardware.network_gb_s
    if link is None or (far and network is None):
        return None
    return max(near / (link * 1e9), far / (network * 1e9) if far and network else 0.0)
