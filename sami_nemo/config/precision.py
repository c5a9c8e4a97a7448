"""What `auto` stands for in `train.precision` and `generate.dtype`: the number format that this machine multiplies fast.

bf16 on GPUs and on processors with instructions for it, fp32 on all others. (A processor without them takes bf16 apart: on
AVX2 it multiplies seven times slower than fp32, docs/performance.md.) Decided by the launcher when a run begins, without
torch, and kept for as long as the run exists.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

AUTO = "auto"
# The keys that may say `auto`, with their names of the two formats.
NAMES = {("train", "precision"): ("bf16", "fp32"), ("generate", "dtype"): ("bfloat16", "float32")}

CPUINFO = Path("/proc/cpuinfo")
# Linux's names of instructions that multiply bf16: AVX-512 and AMX on x86-64, Armv8.6.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# The variable by which oneDNN, torch's library for products of matrices, is held to older instructions, and its values
# that leave out bf16.
ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
ISA_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


@dataclass(frozen=True)
class Processor:
    """A CPU as Linux describes it."""

    name: str
    flags: frozenset[str]
    """Instructions that every core has."""
    limit: str = ""
    """Value of ONEDNN_MAX_CPU_ISA."""

    @property
    def multiplies_bf16(self) -> bool:
        return bool(self.flags & BF16_FLAGS) and self.limit.upper() not in ISA_WITHOUT_BF16

    def explain(self) -> str:
        """Why `multiplies_bf16` is what it is."""
        found = sorted(self.flags & BF16_FLAGS)
        if self.multiplies_bf16:
            return f"{self.name} multiplies bf16 ({', '.join(found)})"
        if found:
            return f"{ISA_VARIABLE}={self.limit} keeps {self.name} from its bf16 instructions"
        return f"{self.name} has no bf16 instructions, so fp32 is faster"


def parse_cpuinfo(text: str, limit: str = "") -> Processor:
    """The processor that /proc/cpuinfo describes. Cores may differ: what not all of them have does not count."""
    fields = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]
    # Arm says Features, and has no name.
    cores = [frozenset(value.split()) for key, value in fields if key in ("flags", "Features")]
    name = next((value for key, value in fields if key == "model name"), f"this {platform.machine()} processor")
    return Processor(name, frozenset.intersection(*cores) if cores else frozenset(), limit)


def this_processor() -> Processor:
    """The processor of this machine; one of which nothing is known where Linux does not tell."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.exists() else ""
    return parse_cpuinfo(text, os.environ.get(ISA_VARIABLE, ""))


def settle(values: dict[str, Any], begun: Path, processor: Processor) -> tuple[dict[str, Any], str | None]:
    """Replace `auto` in the values of a configuration.

    Args:
        values: as composed, not checked yet.
        begun: config.yaml of the run. If it exists the run keeps the formats that it began with, wherever it goes on.
        processor: that decides unless the hardware has GPUs.

    Returns:
        The values, and what was chosen and why; None if nothing was left to choose.
    """
    open_keys = [key for key in NAMES if _get(values, *key) == AUTO]
    if not open_keys:
        return values, None
    before = _read(begun)
    on_gpu = _get(values, "hardware", "accelerator") == "gpu"
    reason = "on GPUs" if on_gpu else processor.explain()
    settled = dict(values)
    for section, field in open_keys:
        bf16, fp32 = NAMES[section, field]
        choice = bf16 if on_gpu or processor.multiplies_bf16 else fp32
        if (kept := _get(before, section, field)) in (bf16, fp32):
            choice, reason = kept, f"as the run began ({begun})"
        settled[section] = {**settled[section], field: choice}
    chosen = ", ".join(f"{section}.{field} = {settled[section][field]}" for section, field in open_keys)
    return settled, f"{chosen}: {reason}"


def _get(values: Any, section: str, field: str) -> Any:
    below = values.get(section) if isinstance(values, Mapping) else None
    return below.get(field) if isinstance(below, Mapping) else None


def _read(begun: Path) -> Any:
    """Whatever the file holds; that a damaged one belongs to no run is said when the run is opened."""
    try:
        return yaml.safe_load(begun.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
