"""Does a configuration fit its devices, its hosts and its disk? Answers for the launcher; no torch."""

from __future__ import annotations

from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.schema import Config
from sami_nemo.errors import EnvironmentMismatch, UserError
from sami_nemo.geometry import Geometry
from sami_nemo.planner.batch import Batch, group_tokens, longest_batch, scoring_batch
from sami_nemo.planner.engine import GIB, cache_bytes, cache_bytes_per_token, engine_weight_bytes
from sami_nemo.planner.layout import Layout, layout_of
from sami_nemo.planner.layouts import fitting_layouts, nodes_needed
from sami_nemo.planner.memory import (
    CPU,
    RankMemory,
    kernels_of,
    needed_bytes,
    optimizer_bytes,
    scoring_memory,
    worst_rank,
)
from sami_nemo.planner.parameters import (
    SINGLE,
    buffers,
    count,
    largest_buffers,
    layer_weights,
    rank_weights,
    shards,
    total_parameters,
)

# Python with torch, NeMo and CUDA in a training process or a vLLM worker.
PROCESS_BYTES = 6 * GIB
# What no process does without on a CPU: memory that torch and NeMo have taken for themselves once they are imported.
LEAST_PROCESS_BYTES = GIB // 2
# Responses, groups and logs.
TEXT_BYTES = 1 * GIB
CHECKPOINTS = 2
"""Training checkpoints on the disk at a time: the new one is written before the old one goes."""


def training_peak(config: Config, geometry: Geometry, layout: Layout, batch: Batch) -> RankMemory:
    """Memory of the worst rank in training."""
    return worst_rank(geometry, layout, batch, kernels_of(config))


def scoring_peak(config: Config, geometry: Geometry, layout: Layout) -> float:
    """Peak bytes of a rank in the stage that evaluates; sequences as long as the settings allow."""
    return scoring_memory(geometry, layout, scoring_batch(config), kernels_of(config))


def check_plan(config: Config) -> list[UserError]:
    """Refuse a run that its GPUs have no room for. `config` has passed `check_config`.

    Returns:
        At most one problem of training and evaluation, and one of sampling; none if the model's geometry or the GPUs' memory
        is not known.
    """
    geometry = base_geometry(config.model)
    if geometry is None or config.hardware.accelerator == "cpu" or config.hardware.gpu_memory_gib is None:
        return []
    return [*_check_training(config, geometry), *_check_sampling(config, geometry)]


def _check_training(config: Config, geometry: Geometry) -> list[UserError]:
    layout, batch = layout_of(config), longest_batch(config)
    memory = training_peak(config, geometry, layout, batch)
    scoring = scoring_peak(config, geometry, layout)
    available, needed = config.hardware.gpu_memory_gib, needed_bytes(max(memory.peak, scoring)) / GIB
    if available is None or needed <= available:
        return []
    task = f"training ({memory.moment})" if memory.peak >= scoring else "evaluation"
    found = (
        f"tensor x pipeline x expert x data parallel = {layout.tensor} x {layout.pipeline} x {layout.expert} x "
        f"{layout.data} on {layout.devices} GPUs"
    )
    # One decimal: the whole of a GPU and a little more would read as equal.
    remedy = f"{task} needs {needed:.1f} GiB of each GPU, which has {available}; {_advice(config, geometry)}"
    return [EnvironmentMismatch("parallel layout", found, remedy)]


def _advice(config: Config, geometry: Geometry) -> str:
    """The fastest layout that fits, on these nodes or on the smallest number of nodes that has one."""
    longest = group_tokens(longest_batch(config))
    fitting = fitting_layouts(config, geometry)
    if fitting:
        best = fitting[0]
        return f"{best.layout.keys(longest)} fits with {best.spare_gib:.0f} GiB to spare"
    nodes = nodes_needed(config, geometry)
    if nodes is None:
        return "no layout fits; take GPUs with more memory, or a smaller model"
    best = nodes[1]
    return f"none fits without other masters or gradients; hardware.nodes={nodes[0]} {best.layout.keys(longest)} does"


def _check_sampling(config: Config, geometry: Geometry) -> list[UserError]:
    """An engine must hold its weights and at least one request of the longest kind."""
    room = cache_bytes(geometry, config)
    one = cache_bytes_per_token(geometry, config) * config.generate.max_model_len
    if room is None or room >= one:
        return []
    weights = engine_weight_bytes(geometry, config) / GIB
    remedy = (
        f"{weights:.0f} GiB of weights on each GPU of an engine leave no room for a request of "
        f"{config.generate.max_model_len} tokens; raise it"
    )
    return [EnvironmentMismatch("generate.tensor_parallel", config.generate.tensor_parallel, remedy)]


def export_bytes(config: Config, geometry: Geometry) -> int:
    """A Hugging Face checkpoint in the type that was trained."""
    return layout_of(config).weight_bytes * total_parameters(geometry)


def training_checkpoint_bytes(config: Config, geometry: Geometry) -> int:
    """A checkpoint of the training state over all ranks."""
    layout = layout_of(config)
    per_parameter = saved_bytes(config)
    stages = [shards(buffers(rank_weights(geometry, layout, s), layout), layout) for s in range(layout.pipeline)]
    ranks = layout.tensor * layout.data
    return sum(stage.total for stage in stages) * ranks * per_parameter


def saved_bytes(config: Config) -> int:
    """Per parameter of a rank's shard: what the optimizer updates, and its moments."""
    layout = layout_of(config)
    own = 0 if layout.precision == "bf16" and layout.masters == "fp32" else layout.weight_bytes
    return own + optimizer_bytes(layout, kernels_of(config))


def disk_bytes(config: Config) -> int | None:
    """Bytes of a run: exports of all iterations, the two newest training checkpoints, and text.

    Returns:
        None if the model's geometry is not known.
    """
    geometry = base_geometry(config.model)
    if geometry is None:
        return None
    exports = config.iterations * export_bytes(config, geometry)
    return exports + CHECKPOINTS * training_checkpoint_bytes(config, geometry) + TEXT_BYTES


def host_stages(config: Config, geometry: Geometry, process_bytes: int = PROCESS_BYTES) -> dict[str, float]:
    """Bytes of host memory per node of the stages that need most. Files that are mapped come and go: not counted.

    Args:
        process_bytes: of a process besides its tensors.
    """
    layout, processes = layout_of(config), config.hardware.devices_per_node
    own = shards(largest_buffers(geometry, layout), layout).total
    base = float(processes * process_bytes)
    one_layer = count(layer_weights(geometry, SINGLE, 1))
    ends = geometry.vocab_size * geometry.hidden_size
    # transformers fills one layer at a time, while the one before may not be gone; then comes the output projection.
    verify = base + layout.weight_bytes * (2 * one_layer + ends)
    stages = {
        # A rank reads the slices that it keeps, one at a time.
        "import": base + layout.weight_bytes * max(one_layer, ends),
        "checkpoint": base + processes * own * saved_bytes(config),
        "export": base + layout.weight_bytes * max(one_layer, ends),
        "verify": verify,
        "vLLM": float(config.generate.tensor_parallel * process_bytes),
    }
    if config.hardware.accelerator == "cpu":
        batch = longest_batch(config)
        stages["train"] = base + processes * worst_rank(geometry, layout, batch, CPU).peak
        room = cache_bytes(geometry, config) or 0.0
        stages["vLLM"] += engine_weight_bytes(geometry, config) * config.generate.tensor_parallel + room
    return stages


def host_bytes(config: Config, process_bytes: int = PROCESS_BYTES) -> int | None:
    """Host memory that a node needs at the worst moment of the run; None if the model's geometry is not known."""
    geometry = base_geometry(config.model)
    return None if geometry is None else round(max(host_stages(config, geometry, process_bytes).values()))
