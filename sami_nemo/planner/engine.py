"""Memory of a vLLM engine on each of its GPUs."""

from __future__ import annotations

from pathlib import Path

from sami_nemo.config.schema import Config
from sami_nemo.geometry import Geometry
from sami_nemo.planner.parameters import total_parameters

GIB = 2**30
# Activations of a prefill of 8,192 tokens, CUDA graphs and NCCL's buffers: what vLLM's own profile run leaves out of the
# cache for 7 B to 70 B models.
ENGINE_OVERHEAD_GIB = 4
# vLLM's own limit.
MOST_REQUESTS = 256


def engine_weight_bytes(geometry: Geometry, config: Config) -> float:
    """Weights on each GPU of an engine."""
    size = 2 if config.generate.dtype == "bfloat16" else 4
    return total_parameters(geometry) * size / config.generate.tensor_parallel


def cache_bytes_per_token(geometry: Geometry, config: Config) -> float:
    """Keys and values of one token on each GPU; key heads are copied where there are more GPUs than heads."""
    size = 2 if config.generate.dtype == "bfloat16" else 4
    heads = max(geometry.num_key_value_heads / config.generate.tensor_parallel, 1)
    return 2 * geometry.num_layers * heads * geometry.head_dim * size


def cache_bytes(geometry: Geometry, config: Config) -> float | None:
    """Room for keys and values on each GPU, negative if the weights do not fit; None if the GPU's size is not known."""
    hardware, generate = config.hardware, config.generate
    if hardware.accelerator == "cpu":
        if generate.cpu_kv_cache_gib is not None:
            return float(generate.cpu_kv_cache_gib * GIB)
        needed = cache_bytes_per_token(geometry, config) * generate.max_model_len * generate.chunk_requests
        # At least 1 GiB: vLLM keeps a block for itself. Whole GiB of what is free, so that it seldom makes a difference.
        return min(max(needed, GIB), max(available_memory() // (4 * GIB), 1) * GIB)
    if hardware.gpu_memory_gib is None:
        return None
    available = hardware.gpu_memory_gib * GIB * generate.gpu_memory_utilization
    return available - engine_weight_bytes(geometry, config) - ENGINE_OVERHEAD_GIB * GIB


def available_memory() -> int:
    """Bytes of this machine's memory that programs can have (Linux)."""
    return _meminfo("MemAvailable")


def total_memory() -> int:
    """Bytes of this machine's memory."""
    return _meminfo("MemTotal")


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def requests_together(geometry: Geometry, config: Config, tokens: int) -> int:
    """Requests of `tokens` tokens that an engine works on at a time; at least one, at most a chunk."""
    room = cache_bytes(geometry, config)
    generate = config.generate
    fitting = min(generate.max_num_seqs or MOST_REQUESTS, generate.chunk_requests)
    if room is not None:
        fitting = min(fitting, int(room // (cache_bytes_per_token(geometry, config) * tokens)))
    return max(fitting, 1)


def engines_at_once(config: Config) -> int:
    """As jobs of a cluster all engines work at the same time; on one machine as many as have GPUs.

    On the CPU an engine wants all cores.
    """
    generate, hardware = config.generate, config.hardware
    if config.cluster.scheduler == "slurm":
        return generate.engines
    if hardware.accelerator == "cpu":
        return 1
    return max(1, min(generate.engines, hardware.devices_per_node // generate.tensor_parallel))
