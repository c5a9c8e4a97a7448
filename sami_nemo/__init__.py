"""SAMI (Self-Supervised Alignment with Mutual Information) on NVIDIA NeMo and Megatron-core."""

import os
from pathlib import Path

__version__ = "0.2.0"

# Where CUDA's compiler is installed, megatron-core compiles an extension when it is imported, and torch asks the visible
# GPUs what to compile for. Without NVIDIA's driver there are none, and the import would fail. The extension has no code
# for GPUs, so that any answer will do.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
