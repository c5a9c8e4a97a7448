"""This machine's GPUs: how many, how large, and whether torch can use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sami_nemo.errors import EnvironmentMismatch, UserError
from sami_nemo.launch.programs import run

# nvidia-smi answers in a second; importing torch from a busy file system takes tens of seconds.
TIMEOUT_SECONDS = 120
PROBE = (
    "import json, torch; "
    "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, 'usable': torch.cuda.is_available(), "
    "'nccl': torch.distributed.is_available() and torch.distributed.is_nccl_available()}))"
)


def describe_gpus(count: int, memory_gib: int) -> tuple[str, bool]:
    """This machine's GPUs in words, and whether at least `count` of them have `memory_gib`."""
    lines = _query("name,memory.total")
    gpus = [line.rsplit(",", 1) for line in lines if "," in line]
    if not gpus:
        reason = "nvidia-smi is not installed" if shutil.which("nvidia-smi") is None else "nvidia-smi lists none"
        return f"no GPU ({reason})", False
    sizes = [int(mib) / 1024 if mib.strip().isdigit() else 0.0 for _, mib in gpus]
    words = ", ".join(f"{name.strip()} {size:.0f} GiB" for (name, _), size in zip(gpus, sizes, strict=True))
    return f"{len(gpus)} GPUs ({words})", sum(size >= memory_gib for size in sizes) >= count


def check_gpu_stack(interpreter: Path) -> list[UserError]:
    """Whether torch in an environment can use the GPUs: its CUDA against the driver, and NCCL."""
    status, output, error = run([str(interpreter), "-c", PROBE], TIMEOUT_SECONDS)
    if status != 0:
        line = (error.strip().splitlines() or ["no answer"])[-1]
        return [EnvironmentMismatch("torch", interpreter, f"cannot be imported ({line}); install the environment anew")]
    found = json.loads(output)
    driver = (_query("driver_version") or ["unknown"])[0].strip()
    problems: list[UserError] = []
    if found["cuda"] is None:
        remedy = (
            "is built without CUDA; run `python3 tools/setup_environments.py` on a machine with GPUs, or use the image"
        )
        problems.append(EnvironmentMismatch("torch", found["torch"], remedy))
    elif not found["usable"]:
        remedy = f"torch {found['torch']} needs one for CUDA {found['cuda']}; update the driver, or use an older image"
        problems.append(EnvironmentMismatch("NVIDIA driver", driver, remedy))
    elif not found["nccl"]:
        problems.append(
            EnvironmentMismatch("torch", found["torch"], "is built without NCCL; use NVIDIA's or PyPI's build")
        )
    return problems


def _query(fields: str) -> list[str]:
    status, output, _ = run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"], TIMEOUT_SECONDS)
    return output.splitlines() if status == 0 else []
