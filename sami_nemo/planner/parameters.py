"""Parameters of the model and of each rank, exactly, and the buffers that Megatron lays them out in.

Every rank of a pipeline stage holds equally many: tensor-parallel sizes divide heads and feed-forward width, the vocabulary
is padded to a multiple of them, and expert-parallel sizes divide the experts. Experts are split over tensor-parallel ranks like everything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sami_nemo.geometry import Geometry, vocabulary_part
from sami_nemo.planner.layout import Layout

# Megatron-core 0.15, _ParamAndGradBuffer, with the distributed optimizer: a parameter starts at a multiple of 64
# elements, and a bucket ends at a multiple of 128 and of the data-parallel ranks that share it.
PARAMETER_ALIGNMENT = 64
BUCKET_ALIGNMENT = 128


@dataclass(frozen=True)
class Weight:
    """A parameter of one rank, `count` times."""

    name: str
    elements: int
    count: int = 1
    expert: bool = False
    """Whether expert-parallel ranks hold different ones, so that fewer ranks share its gradients."""
    own_bucket: bool = False
    """Tied embeddings on the two ends of a pipeline, which are reduced apart."""

    @property
    def total(self) -> int:
        return self.elements * self.count


def layer_weights(geometry: Geometry, layout: Layout, layers: int) -> list[Weight]:
    """The parameters of `layers` layers on one rank."""
    hidden, tensor = geometry.hidden_size, layout.tensor
    mixture = geometry.num_experts is not None
    experts = (geometry.num_experts or 1) // layout.expert
    # Without expert parallelism Megatron treats experts like any other parameter.
    apart = mixture and layout.expert > 1
    weights = [
        Weight("norms", hidden, 2 * layers),
        Weight("query, key, value", hidden * (geometry.query_size + 2 * geometry.key_size) // tensor, layers),
        Weight("attention output", hidden * geometry.query_size // tensor, layers),
        Weight("gate and up", 2 * hidden * geometry.ffn_hidden_size // tensor, experts * layers, expert=apart),
        Weight("down", hidden * geometry.ffn_hidden_size // tensor, experts * layers, expert=apart),
    ]
    if geometry.num_experts is not None:
        weights.append(Weight("router", geometry.num_experts * hidden, layers))
    return weights


def rank_weights(geometry: Geometry, layout: Layout, stage: int) -> list[Weight]:
    """The parameters of a rank of pipeline stage `stage` (from 0)."""
    last = layout.pipeline - 1
    weights = layer_weights(geometry, layout, geometry.num_layers // layout.pipeline)
    embedding = vocabulary_part(geometry.vocab_size, layout.tensor) * geometry.hidden_size
    copied = geometry.tied_embeddings and layout.pipeline > 1
    if stage == 0:
        weights.append(Weight("embedding", embedding, own_bucket=copied))
    if stage == last:
        weights.append(Weight("final norm", geometry.hidden_size))
        if copied or not geometry.tied_embeddings:
            weights.append(Weight("output projection", embedding, own_bucket=copied))
    return weights


def count(weights: Sequence[Weight]) -> int:
    """Elements of all of them."""
    return sum(weight.total for weight in weights)


@dataclass(frozen=True)
class Buffers:
    """Elements of a rank's parameter and gradient buffers, with padding."""

    dense: int
    expert: int
    """Of the experts that other expert-parallel ranks do not hold; 0 without expert parallelism."""

    @property
    def total(self) -> int:
        return self.dense + self.expert


def buffers(weights: Sequence[Weight], layout: Layout) -> Buffers:
    """What Megatron's DistributedDataParallel allocates for a rank."""
    return Buffers(
        dense=_buffer([w for w in weights if not w.expert], layout.data, layout.distributed_optimizer),
        expert=_buffer([w for w in weights if w.expert], layout.expert_data, layout.distributed_optimizer),
    )


def _buffer(weights: Sequence[Weight], replicas: int, sharded: bool) -> int:
    if not sharded:
        return count(weights)
    multiple = math.lcm(replicas, BUCKET_ALIGNMENT)
    alone = [weight for weight in weights if weight.own_bucket]
    buckets = [[weight for weight in weights if not weight.own_bucket], *([weight] for weight in alone)]
    return sum(
        _pad(sum(_pad(w.elements, PARAMETER_ALIGNMENT) * w.count for w in bucket), multiple) for bucket in buckets
    )


def _pad(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple


def shards(held: Buffers, layout: Layout) -> Buffers:
    """Elements that a rank's optimizer updates: an even part of each buffer, or everything."""
    if not layout.distributed_optimizer:
        return held
    return Buffers(held.dense // layout.data, held.expert // layout.expert_data)


def largest_buffers(geometry: Geometry, layout: Layout) -> Buffers:
    """Of the pipeline stage that holds most: one of the ends."""
    ends = {0, layout.pipeline - 1}
    return max((buffers(rank_weights(geometry, layout, stage), layout) for stage in ends), key=lambda held: held.total)


def total_parameters(geometry: Geometry) -> int:
    """Of the whole model; tied embeddings count once."""
    return count(rank_weights(geometry, SINGLE, stage=0))


def active_parameters(geometry: Geometry) -> int:
    """Those that take part in the computation of one token: of the experts, only the chosen."""
    idle = (geometry.num_experts or 1) - geometry.experts_per_token
    return total_parameters(geometry) - geometry.num_layers * idle * 3 * geometry.hidden_size * geometry.ffn_hidden_size


SINGLE = Layout(
    devices=1,
    devices_per_node=1,
    tensor=1,
    pipeline=1,
    expert=1,
    micro_batch=1,
    checkpointing=False,
    precision="bf16",
    masters="fp32",
    gradients="fp32",
    optimizer="adamw",
    sequence_parallel=False,
)
"""One device: the whole model on one rank."""
