"""Bytes of device memory that a training step takes on a rank, at its peak.

Weights, gradients and optimizer state are exact. Activations are counted tensor by tensor: what autograd keeps of each
layer until its backward pass, and what exists only while one layer or the output projection is worked on. On CPUs
(Megatron's own modules, torch's flash attention) this is what was seen to be kept; on GPUs (Transformer Engine, and flash
or FlexAttention) it is what the source of the kernels keeps. No attention keeps score matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from sami_nemo.config.schema import Config
from sami_nemo.geometry import Geometry, vocabulary_part
from sami_nemo.planner.batch import Batch, group_tokens, head_positions
from sami_nemo.planner.engine import GIB
from sami_nemo.planner.layout import Layout
from sami_nemo.planner.parameters import Buffers, buffers, largest_buffers, rank_weights, shards

FP32 = 4
# What a process holds on its GPU besides tensors: CUDA context and kernels (0.5 to 1 GiB), cuBLAS workspaces, and the
# buffers of about ten NCCL communicators.
RESERVED_GIB = 3.0
# Blocks that torch's allocator has cached in sizes that nobody asks for again: a few percent, more where sequence
# lengths vary, as they do here.
FRAGMENTATION = 0.05
# CHUNK_LOGITS of model/response_head.py, which needs torch.
CHUNK_LOGITS = 2**24
# Mixtral's router balances experts over many tokens but not within a micro-batch; a rank is given room for half as many
# tokens again as its even share. Without expert parallelism every token stays on its rank, whatever its experts.
EXPERT_IMBALANCE = 1.5


@dataclass(frozen=True)
class Kernels:
    """What an accelerator's kernels keep for the backward pass."""

    masks: bool
    """Whether attention over packed rows takes a mask of every row; block masks of FlexAttention are small."""
    layers: bool
    """Whether norms, rotary embedding and SwiGLU are fused, as those of Transformer Engine and Megatron: they keep less."""


CPU = Kernels(masks=True, layers=False)
GPU = Kernels(masks=False, layers=True)


def kernels_of(config: Config) -> Kernels:
    """The kernels of the configuration's accelerator."""
    return CPU if config.hardware.accelerator == "cpu" else GPU


def needed_bytes(allocated: float) -> float:
    """Of a GPU's memory, for `allocated` bytes of tensors."""
    return allocated * (1 + FRAGMENTATION) + RESERVED_GIB * GIB


def spare_gib(config: Config, allocated: float) -> float | None:
    """GiB that stay free on a GPU; negative if it does not fit, None if the GPU's memory is not known."""
    memory = config.hardware.gpu_memory_gib
    return None if memory is None else memory - needed_bytes(allocated) / GIB


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


def rank_memory(geometry: Geometry, layout: Layout, batch: Batch, stage: int, kernels: Kernels) -> RankMemory:
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


def worst_rank(geometry: Geometry, layout: Layout, batch: Batch, kernels: Kernels) -> RankMemory:
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


def activation_peak(geometry: Geometry, layout: Layout, batch: Batch, stage: int, kernels: Kernels) -> float:
    """Bytes that a rank of `stage` holds at the worst moment of forward and backward passes."""
    tokens = layout.micro_batch * group_tokens(batch)
    layers = geometry.num_layers // layout.pipeline
    layer = layer_activations(geometry, layout, batch, kernels)
    inputs = tokens * geometry.hidden_size * layout.weight_bytes / layout.sequence_shards
    kept = layers * (inputs if layout.checkpointing else layer)
    # 1F1B: stage s has as many micro-batches under way as there are stages from it to the end.
    under_way = min(layout.pipeline - stage, layout.micro_batches(batch))
    # The gradients of a layer mirror what it kept; when it is recomputed, that is there as well.
    working = layer * (2 if layout.checkpointing else 1)
    if stage == layout.pipeline - 1:
        kept += final_norm(geometry, layout, tokens, kernels)
        working = max(working, head_memory(geometry, layout, batch))
    computing = under_way * kept + working + gathered(geometry, layout, tokens)
    return max(computing, embedding_gradient(geometry, layout))


def layer_activations(geometry: Geometry, layout: Layout, batch: Batch, kernels: Kernels) -> float:
    """Bytes that one layer keeps of a micro-batch for its backward pass."""
    size, tensor = layout.weight_bytes, layout.tensor
    tokens = layout.micro_batch * group_tokens(batch)
    norms = 2 * _norm(geometry, size, kernels) / layout.sequence_shards
    attention = _attention(geometry, batch, size, kernels) / tensor
    masks = layout.micro_batch * _masks(batch) * size if kernels.masks else 0
    # Gate and up projection, and their product; unfused also SiLU's output and the copy that it is multiplied with.
    width = (3 if kernels.layers else 5) * geometry.ffn_hidden_size / tensor
    if geometry.num_experts is None:
        return tokens * (norms + attention + width * size) + masks
    # Unfused, the product with the router's weight is kept besides. Each expert keeps the tokens that it was sent.
    width += 0 if kernels.layers else geometry.ffn_hidden_size / tensor
    share = geometry.experts_per_token * (EXPERT_IMBALANCE if layout.expert > 1 else 1)
    return tokens * (norms + attention + share * (geometry.hidden_size + width) * size) + masks


def _norm(geometry: Geometry, size: int, kernels: Kernels) -> int:
    """Per token: input and output; unfused, input and normalised input in fp32, and the output."""
    return geometry.hidden_size * (2 * size if kernels.layers else 2 * FP32 + size)


def _attention(geometry: Geometry, batch: Batch, size: int, kernels: Kernels) -> int:
    """Per token, over all heads: projected and rotated queries and keys, values, the context, a log-sum for each head."""
    queries, keys, heads = geometry.query_size, geometry.key_size, geometry.num_attention_heads
    kept = size * (3 * queries + 3 * keys) + FP32 * heads
    if kernels.layers or batch.layout == "plain":
        return kept
    # On CPUs the contexts of rows are copied together, and each token has its own cosines and sines, of queries and keys.
    return kept + size * (queries + 4 * geometry.head_dim)


def _masks(batch: Batch) -> int:
    """Elements of one contrast group's masks: the responses of a row by all of it."""
    if batch.layout == "plain":
        return 0
    responses = batch.constitutions * batch.response
    return batch.constitutions * responses * (batch.prompt + responses)


def final_norm(geometry: Geometry, layout: Layout, tokens: int, kernels: Kernels) -> float:
    """Bytes kept of the norm in front of the output projection."""
    return tokens * _norm(geometry, layout.weight_bytes, kernels) / layout.sequence_shards


def head_memory(geometry: Geometry, layout: Layout, batch: Batch) -> float:
    """Bytes of logits and of their gradients at their worst moment, in the backward pass.

    Of one chunk there are either logits, gradients and gradients times the loss's in fp32, and their copy in the type of the
    weights; or the logits, that copy, and what the chunk adds to the buffer of gradients.
    """
    size = layout.weight_bytes
    projection = vocabulary_part(geometry.vocab_size, layout.tensor) * geometry.hidden_size
    chunk = chunk_logits(geometry, layout, batch)
    copy = size if size < FP32 else 0
    working = max(chunk * (3 * FP32 + copy), chunk * (FP32 + size) + projection * size)
    hidden = 2 * layout.micro_batch * head_positions(batch) * geometry.hidden_size * size
    return working + hidden


def chunk_logits(geometry: Geometry, layout: Layout, batch: Batch) -> float:
    """Logits that exist together."""
    part = vocabulary_part(geometry.vocab_size, layout.tensor)
    return min(CHUNK_LOGITS, layout.micro_batch * head_positions(batch) * part)


def embedding_gradient(geometry: Geometry, layout: Layout) -> float:
    """Bytes of the embedding's gradient before it is added to the buffer of gradients, with all activations gone."""
    return vocabulary_part(geometry.vocab_size, layout.tensor) * geometry.hidden_size * layout.weight_bytes


def gathered(geometry: Geometry, layout: Layout, tokens: int) -> float:
    """Bytes of sequences gathered from tensor-parallel ranks."""
    return tokens * geometry.hidden_size * layout.weight_bytes if layout.sequence_parallel else 0.0


def scoring_memory(geometry: Geometry, layout: Layout, batch: Batch, kernels: Kernels) -> float:
    """Peak bytes of a rank that evaluates: weights, one layer's working set or the logits. No gradients."""
    layer = layer_activations(geometry, layout, batch, kernels)
    weights = largest_buffers(geometry, layout).total * layout.weight_bytes
    # The head in the forward pass: a chunk's logits, the same less the largest, and their exponentials.
    return weights + max(layer, chunk_logits(geometry, layout, batch) * 3 * FP32)
