"""Can the environments be installed on this machine? Asked before anything is downloaded or written."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Collection
from pathlib import Path

from sami_nemo.errors import EnvironmentMismatch

GIB = 2**30

ARCHITECTURES = ("x86_64", "aarch64")
# The newest glibc that the pinned packages ask for, on either processor: nvidia-resiliency-ext and llguidance have no
# build for an older one. Of the launcher's packages, hf-xet asks most.
GLIBC = {"train": (2, 31), "generate": (2, 31), "launcher": (2, 28)}

# Measured with the CUDA build of torch, which pip takes by default, with a GPU or without: 6.5 GiB for train; 6.1 for
# generate, 6.5 with vLLM for GPUs. With the CPU build it is 2.8 and 3.4, but only pip knows which one it will find.
DISK_GIB = {"train": 6.6, "generate": 6.6, "launcher": 0.2}
# pip keeps what it has downloaded for an environment until all is unpacked: 3.0 GiB with torch's CUDA build, by the sizes
# that pip prints.
DOWNLOAD_GIB = {"train": 3.0, "generate": 3.0, "launcher": 0.1}

# A training step of the default model, the smallest that is shipped, peaks at 5 GiB (docs/performance.md) beside the
# launcher and the system. What is sold as 8 GB shows a little less.
MEMORY_GIB = 7.0

MEMORY = Path("/proc/meminfo")
# Of a container, by control groups of version 2 and 1.
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_machine(names: Collection[str], root: Path) -> None:
    """Raise EnvironmentMismatch if the environments `names` cannot be installed and used here, below `root`."""
    check_place(root)
    check_platform(names, platform.system(), platform.machine(), glibc_version())
    check_memory(names, memory_bytes())
    # What an environment that is made anew takes now, is free by then.
    new = [name for name in names if not (root / ".venv" / name).exists()]
    check_disk(names, new, shutil.disk_usage(root).free, root)


def check_place(root: Path) -> None:
    """Environments can be made below `root`."""
    if os.pathsep in str(root):
        raise EnvironmentMismatch("repository", root, "its path has a colon, which parts paths in PATH; move it")


def check_platform(names: Collection[str], system: str, architecture: str, glibc: tuple[int, int] | None) -> None:
    """The packages have builds for this system.

    Args:
        names: the environments.
        system: Linux, Darwin, Windows: as `platform.system` says.
        architecture: as `platform.machine` says.
        glibc: its version; None for another C library.
    """
    if system != "Linux":
        remedy = "Linux is needed; take a Linux machine" + (" or WSL 2" if system == "Windows" else "")
        raise EnvironmentMismatch("system", system, remedy)
    if architecture not in ARCHITECTURES:
        raise EnvironmentMismatch("processor", architecture, f"take a machine with {' or '.join(ARCHITECTURES)}")
    needed = max(GLIBC[name] for name in names)
    if glibc is None or glibc < needed:
        found = "(another C library)" if glibc is None else _dotted(glibc)
        remedy = f"the packages need glibc {_dotted(needed)} or newer; take Ubuntu 20.04, Debian 11, RHEL 9 or newer"
        raise EnvironmentMismatch("glibc", found, remedy)


def check_memory(names: Collection[str], available: int) -> None:
    """The smallest run fits into `available` bytes. A launcher runs on a login node, and its stages elsewhere."""
    if set(names) != {"launcher"} and available < MEMORY_GIB * GIB:
        remedy = f"the smallest run needs {MEMORY_GIB:.0f} GiB; take a larger machine, or raise a container's limit"
        raise EnvironmentMismatch("memory", f"{available / GIB:.1f} GiB", remedy)


def check_disk(names: Collection[str], new: Collection[str], free: int, root: Path) -> None:
    """`free` bytes are enough to download the packages of `names`, one environment at a time, and keep those of `new`."""
    needed = sum(DISK_GIB[name] for name in new) + max(DOWNLOAD_GIB[name] for name in names)
    if free < needed * GIB:
        remedy = f"the environments need {needed:.1f} GiB while they are installed; make room, or take a larger disk"
        raise EnvironmentMismatch(f"free space in {root}", f"{free / GIB:.1f} GiB", remedy)


def glibc_version() -> tuple[int, int] | None:
    """Of the library that this Python runs with; None if that is another one."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    except (AttributeError, OSError, ValueError):
        return None


def memory_bytes(memory: Path = MEMORY, limits: Collection[Path] = MEMORY_LIMITS) -> int:
    """The machine's memory, or a container's share of it."""
    total = next(line for line in memory.read_text().splitlines() if line.startswith("MemTotal:"))
    available = int(total.split()[1]) * 1024
    for file in limits:
        limit = file.read_text().strip() if file.is_file() else ""
        if limit.isdigit():  # version 2 says "max" where there is none, version 1 a number above any memory
            available = min(available, int(limit))
    return available


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
