"""Memory of a vLLM engine on each of its GPUs."""

from __future__ import annotations

from sami_nemo.config import Config
from sami_nemo.planner.geometry import ModelGeometry
from sami_nemo.planner.parameters import total_parameters

GIB = 2**30
# Activations of a prefill of 8,192 tokens, CUDA graphs and NCCL's buffers: what vLLM's own profile run leaves out of the
# cache for 7 B to 70 B models.
ENGINE_OVERHEAD_GIB = 4


def engine_weight_bytes(geometry: ModelGeometry, config: Config) -> float:
    """Weights on each GPU of an engine."""
    size = 2 if config.generate.dtype == "bfloat16" else 4
    return total_parameters(geometry) * size / config.generate.tensor_parallel


def cache_bytes_per_token(geometry: ModelGeometry, config: Config) -> float:
    """Keys and values of one token on each GPU; key heads are copied where there are more GPUs than heads."""
    size = 2 if config.generate.dtype == "bfloat16" else 4
    heads = max(geometry.num_key_value_heads / config.generate.tensor_parallel, 1)
    return 2 * geometry.num_layers * heads * geometry.head_dim * size


def cache_bytes(geometry: ModelGeometry, config: Config) -> float | None:
    """Room for keys and values on each GPU, negative if the weights do not fit; None if the GPU's size is not known."""
    hardware, generate = config.hardware, config.generate
    if hardware.accelerator == "cpu":
        return float(generate.cpu_kv_cache_gib * GIB)
    if hardware.gpu_memory_gib is None:
        return None
    available = hardware.gpu_memory_gib * GIB * generate.gpu_memory_utilization
    return available - engine_weight_bytes(geometry, config) - ENGINE_OVERHEAD_GIB * GIB


def requests_together(geometry: ModelGeometry, config: Config, tokens: int) -> int:
    """Requests of `tokens` tokens that an engine holds at a time; at least one."""
    room = cache_bytes(geometry, config)
    fitting = config.generate.max_num_seqs
    if room is not None:
        fitting = min(fitting, int(room // (cache_bytes_per_token(geometry, config) * tokens)))
    return max(fitting, 1)
