"""What an image installs on its base: the pins of a lock, without what the base brings.

    python3 containers/requirements.py train|generate > requirements.txt

Needs nothing but Python, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Where the repository lies. The check of versions needs nothing but Python either.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sami_nemo.versions import LOCKS, read_lock

# NVIDIA builds torch with the CUDA, NCCL, Transformer Engine and Apex of the same container: another torch would break
# them all. The bindings belong to its CUDA.
NVIDIA_BRINGS = frozenset({"torch", "triton", "cuda-bindings", "cuda-pathfinder"})
# What the stages of the generation environment import besides vllm; the base brings the rest. transformers is among
# them because the tokenizers of prompts and of responses have to be the same everywhere.
GENERATE_NEEDS = ("jinja2", "openai", "pydantic", "pyyaml", "transformers")


def requirements(image: str) -> list[str]:
    """Lines for pip, NAME==VERSION."""
    if image == "train":
        return [
            f"{name}=={version}"
            for name, version in read_lock(LOCKS / "train.txt").items()
            if name not in NVIDIA_BRINGS
        ]
    pins = read_lock(LOCKS / "generate-gpu.txt")
    return [f"{name}=={pins[name]}" for name in GENERATE_NEEDS]


def main() -> int:
    parser = argparse.ArgumentParser(description="Print what an image installs on its base.")
    parser.add_argument("image", choices=("train", "generate"))
    print(*requirements(parser.parse_args().image), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
