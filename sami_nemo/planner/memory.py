"""Bytes of device memory that a training step takes on a rank, at its peak.

Weights, gradients and optimizer state are exact. Activations are counted tensor by tensor: what autograd keeps of each
layer until its backward pass, and what exists only while one layer or the output projection is worked on. With unfused
kernels (Megatron's own modules, on CPUs) this is what was seen to be kept; with fused kernels (Transformer Engine with
flash attention, on GPUs) it is what their source keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from sami_nemo.planner.compute import Batch, group_tokens, head_positions
from sami_nemo.planner.geometry import ModelGeometry
from sami_nemo.planner.layout import Layout
from sami_nemo.planner.parameters import Buffers, buffers, rank_weights, shards

FP32 = 4
# Mixtral's router balances experts over many tokens but not within a micro-batch; a rank is given room for half as many
# tokens again as its even share. Without expert parallelism every token stays on its rank, whatever its experts.
EXPERT_IMBALANCE = 1.5


@dataclass(frozen=True)
class Kernels:
    """Which kernels are fused: they keep less for the backward pass."""

    attention: bool
    """Flash attention, which keeps no score matrix."""
    layers: bool
    """Norms, rotary embedding and SwiGLU of Transformer Engine and Megatron."""


CPU = Kernels(attention=False, layers=False)
GPU = Kernels(attention=True, layers=True)


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """While the model computes: what is kept for the backward pass and the largest working set."""
    update: float
    """While the optimizer works: its temporary copies."""
    construction: float
    """While the model is built: weights are held twice until they lie in Megatron's buffer."""
    stage: int
    """Pipeline stage of the rank."""

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        built = self.weights + self.gradients + self.construction
        return max(self.state + max(self.activations, self.update), built)

    @property
    def moment(self) -> str:
        """When the peak is reached."""
        if self.peak == self.state + self.activations:
            return "forward and backward pass"
        return "optimizer step" if self.peak == self.state + self.update else "building the model"


def rank_memory(geometry: ModelGeometry, layout: Layout, batch: Batch, stage: int, kernels: Kernels) -> RankMemory:
    """Memory of a rank of pipeline stage `stage` (from 0)."""
    held = buffers(rank_weights(geometry, layout, stage), layout)
    own = shards(held, layout)
    return RankMemory(
        weights=held.total * layout.weight_bytes,
        gradients=held.total * layout.gradient_bytes,
        optimizer=own.total * optimizer_bytes(layout, kernels),
        activations=activation_peak(geometry, layout, batch, stage, kernels),
        update=update_bytes(layout, own, kernels),
        construction=held.total * layout.weight_bytes if layout.distributed_optimizer else 0,
        stage=stage,
    )


def worst_rank(geometry: ModelGeometry, layout: Layout, batch: Batch, kernels: Kernels) -> RankMemory:
    """Memory of the ranks that need most."""
    # Between the ends, stages hold the same and keep fewer micro-batches the later they come.
    stages = sorted({0, min(1, layout.pipeline - 1), layout.pipeline - 1})
    return max(
        (rank_memory(geometry, layout, batch, stage, kernels) for stage in stages), key=lambda memory: memory.peak
    )


def optimizer_bytes(layout: Layout, kernels: Kernels) -> int:
    """Per parameter that a rank updates: masters and moments."""
    moments = 2 if layout.optimizer == "adamw" else 1
    if layout.precision == "fp32":
        return moments * FP32
    if layout.masters == "fp32":
        return FP32 + moments * FP32
    # torch's optimizers keep moments in the type of the weights; Transformer Engine's Adam keeps them in fp32.
    fused_adam = kernels.layers and layout.optimizer == "adamw"
    return moments * (FP32 if fused_adam else 2)


def update_bytes(layout: Layout, own: Buffers, kernels: Kernels) -> int:
    """Temporary copies of the optimizer step."""
    # fp32 masters take fp32 gradients: those of a rank's shard are converted together.
    converted = own.total * FP32 if layout.gradients == "bf16" and layout.masters == "fp32" else 0
    if layout.optimizer == "adamw" or not kernels.layers:
        # Transformer Engine's Adam has none; on CPUs torch goes one tensor at a time.
        return converted
    # torch's RMSprop takes the square root of all second moments of a group of parameters together on GPUs. Experts
    # and the dense part are such groups.
    moment = FP32 if layout.masters == "fp32" or layout.precision == "fp32" else 2
    return converted + max(own.dense, own.expert) * moment


def activation_peak(geometry: ModelGeometry, layout: Layout, batch: Batch, stage: int, kernels: Kernels) -> float:
    """Bytes that a rank of `stage` holds at the worst moment of forward and backward passes."""
    tokens = layout.micro_batch * group_tokens(batch)
    layers = geometry.num_layers // layout.pipeline
    layer = layer_activations(geometry, layout, tokens, batch.length, kernels)
    inputs = tokens * geometry.hidden_size * layout.weight_bytes / layout.sequence_shards
    kept = layers * (inputs if layout.checkpointing else layer)
    # 1F1B: stage s has as many micro-batches under way as there are stages from it to the end.
    under_way = min(layout.pipeline - stage, batch.micro_batches(layout))
    # The gradients of a layer mirror what it kept; when it is recomputed, that is there as well.
    working = layer * (2 if layout.checkpointing else 1)
    if stage == layout.pipeline - 1:
        kept += final_norm(geometry, layout, tokens, kernels)
        working = max(working, head_memory(geometry, layout, batch))
    computing = under_way * kept + working + scratch(geometry, layout, tokens, batch.length, kernels)
    return max(computing, tied_gradients(geometry, layout))


def layer_activations(geometry: ModelGeometry, layout: Layout, tokens: int, length: int, kernels: Kernels) -> float:
    """Bytes that one layer keeps for its backward pass.

    Args:
        tokens: positions of a micro-batch.
        length: positions of one sequence.
    """
    size, tensor = layout.weight_bytes, layout.tensor
    norms = 2 * _norm(geometry, size, kernels) / layout.sequence_shards
    attention = _attention(geometry, length, size, kernels) / tensor
    # Gate and up projection, and their product; unfused also SiLU's output and the copy that it is multiplied with.
    width = (3 if kernels.layers else 5) * geometry.ffn_hidden_size / tensor
    if geometry.num_experts is None:
        return tokens * (norms + attention + width * size)
    # Unfused, the product with the router's weight is kept besides. Each expert keeps the tokens that it was sent.
    width += 0 if kernels.layers else geometry.ffn_hidden_size / tensor
    share = geometry.experts_per_token * (EXPERT_IMBALANCE if layout.expert > 1 else 1)
    return tokens * (norms + attention + share * (geometry.hidden_size + width) * size)


def _norm(geometry: ModelGeometry, size: int, kernels: Kernels) -> int:
    """Per token: input and output; unfused, input and normalised input in fp32, and the output."""
    return geometry.hidden_size * (2 * size if kernels.layers else 2 * FP32 + size)


def _attention(geometry: ModelGeometry, length: int, size: int, kernels: Kernels) -> int:
    """Per token, over all heads."""
    queries, keys, heads = geometry.query_size, geometry.key_size, geometry.num_attention_heads
    if kernels.attention:
        # Projected and rotated queries and keys, values, the context, and a log-sum for each head.
        return size * (3 * queries + 3 * keys) + FP32 * heads
    # Rotated queries, keys and values repeated for every head, and the context; the softmax in fp32, and in bf16 again.
    scores = heads * length * (FP32 if size == FP32 else FP32 + size)
    return size * 4 * queries + scores


def final_norm(geometry: ModelGeometry, layout: Layout, tokens: int, kernels: Kernels) -> float:
    """Bytes kept of the norm in front of the output projection."""
    return tokens * _norm(geometry, layout.weight_bytes, kernels) / layout.sequence_shards


def head_memory(geometry: ModelGeometry, layout: Layout, batch: Batch) -> float:
    """Bytes of logits and loss at their worst moment.

    Megatron's cross-entropy turns the logits into probabilities in fp32, in place if they were fp32. Before and
    after, the logits or their gradient exist in the type of the weights; then comes the projection's own gradient.
    """
    size = layout.weight_bytes
    logits = layout.micro_batch * head_positions(batch) * geometry.vocab_size / layout.tensor
    projection = geometry.vocab_size * geometry.hidden_size / layout.tensor
    loss = logits * (FP32 if size == FP32 else FP32 + size)
    return max(loss, (logits + projection) * size)


def tied_gradients(geometry: ModelGeometry, layout: Layout) -> float:
    """Bytes at the end of the backward pass if one weight is embedding and output projection.

    The gradients of both uses, their sum, and the copy of it that is added to the gradient buffer.
    """
    if not geometry.tied_embeddings or layout.pipeline > 1:
        return 0.0
    return 4 * geometry.vocab_size * geometry.hidden_size * layout.weight_bytes / layout.tensor


def scratch(geometry: ModelGeometry, layout: Layout, tokens: int, length: int, kernels: Kernels) -> float:
    """Buffers that Megatron keeps: for unfused scores, and for sequences gathered from tensor-parallel ranks."""
    size = layout.weight_bytes
    scores = 0.0 if kernels.attention else tokens * geometry.num_attention_heads * length * size / layout.tensor
    return scores + (tokens * geometry.hidden_size * size if layout.sequence_parallel else 0)


def scoring_memory(geometry: ModelGeometry, layout: Layout, batch: Batch, kernels: Kernels) -> float:
    """Peak bytes of a rank that evaluates: weights, one layer's working set or the logits. No gradients."""
    tokens = layout.micro_batch * group_tokens(batch)
    layer = layer_activations(geometry, layout, tokens, batch.length, kernels)
    weights = max(
        buffers(rank_weights(geometry, layout, stage), layout).total * layout.weight_bytes
        for stage in {0, layout.pipeline - 1}
    )
    return weights + max(layer, head_memory(geometry, layout, batch))
