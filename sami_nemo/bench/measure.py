"""What measurements have in common: the machine, resident memory, the speed of matrix products, tables."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from sami_nemo.config.precision import this_processor

GIB = 2**30
# Long enough for a clock that other work disturbs.
MATMUL_SECONDS = 2.0


def machine() -> str:
    """Processor, cores that this process may use, and memory, in words."""
    processor = this_processor()
    limit = f" held to {processor.limit}" if processor.limit else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return f"{processor.name}{limit}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def resident() -> int:
    """Bytes of memory that this process needs now, freed memory given back (Linux with glibc)."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak_resident() -> int:
    """The most bytes since `reset_peak` (Linux)."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Begin anew to watch for the peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def matmul_flops(precision: str, rows: int, width: int, columns: int) -> float:
    """Operations per second of a matrix product in the shape of the model's largest ones: the limit of a step.

    On a GPU, or inside `cpu_backend`.
    """
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(rows, width, dtype=dtype).cuda(), torch.randn(columns, width, dtype=dtype).cuda()
    best = 0.0
    until = time.monotonic() + MATMUL_SECONDS
    while time.monotonic() < until:
        began = time.monotonic()
        torch.mm(left, right.t())
        torch.cuda.synchronize()
        best = max(best, 2 * rows * width * columns / (time.monotonic() - began))
    return best


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as long theirs takes: the median of the ratios of neighbours in time."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
