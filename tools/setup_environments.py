"""Create .venv/train and .venv/generate from the lock files. Needs nothing but Python 3.11 with pip.

    python3 tools/setup_environments.py [train] [generate] [launcher] [--accelerator auto|cpu|gpu]

`launcher` is for a login node whose stages run in containers: a few small packages, in the versions of the training
lock, and no torch.

An environment that is up to date with its lock is left alone; any other is made anew. What pip says goes to
.venv/<environment>.log and is shown only when a step fails.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ("train", "generate")
# What launcher_scripts/main.py imports. They bring what they need themselves.
LAUNCHER_PACKAGES = ("huggingface_hub", "hydra-core", "jinja2", "pydantic", "pyyaml", "rich")
# NeMo's dependencies have no builds for newer Pythons, and the pinned megatron-core none for older ones.
PYTHON = (3, 11)
LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Step:
    """One command of an installation, named for the user."""

    name: str
    command: list[str]


class StepFailed(Exception):
    """A step that did not exit with 0."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment below `root`/.venv and the lock file that it follows."""

    name: str
    lock: Path
    root: Path

    @property
    def directory(self) -> Path:
        return self.root / ".venv" / self.name

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.root / ".venv" / f"{self.name}.log"

    @property
    def stamp(self) -> Path:
        """Holds the fingerprint of a finished installation; written last."""
        return self.directory / "installed.sha256"

    def fingerprint(self) -> str:
        """Changes with the lock, with the place (environments cannot be moved), and with what the launcher imports."""
        chosen = " ".join(LAUNCHER_PACKAGES) if self.name == "launcher" else ""
        return hashlib.sha256(self.lock.read_bytes() + f"{self.directory}{chosen}".encode()).hexdigest()

    def is_current(self) -> bool:
        return self.stamp.is_file() and self.stamp.read_text() == self.fingerprint() and self.python.exists()

    def steps(self) -> Iterator[Step]:
        """The installation, in order."""
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        install = [*pip, "install", "--progress-bar=off"]
        yield Step("create the virtual environment", [sys.executable, "-m", "venv", "--clear", str(self.directory)])
        if self.lock.name == "generate.txt":
            # The rest is installed without its dependencies; torch needs its own (on CUDA builds, NVIDIA's libraries).
            yield Step("install torch", [*install, f"--constraint={self.lock}", "torch"])
            yield Step("install packages", [*install, "--no-deps", f"--requirement={self.lock}"])
        else:
            wanted = [f"--requirement={self.lock}"]
            if self.name == "launcher":
                wanted = [f"--constraint={self.lock}", *LAUNCHER_PACKAGES]
            yield Step("install packages", [*install, *wanted])
            yield Step("check dependencies", [*pip, "check"])
        yield Step("make the repository importable", [str(self.python), "-c", self._write_path_file()])
        if self.name == "launcher":
            yield Step("start the launcher", [str(self.python), "launcher_scripts/main.py", "dry_run=true"])
        else:
            yield Step("check versions", [str(self.python), "-m", "sami_nemo.versions", self.name])

    def _write_path_file(self) -> str:
        return (
            "import pathlib, sysconfig; "
            "file = pathlib.Path(sysconfig.get_path('purelib'), 'sami_nemo.pth'); "
            f"file.write_text({str(self.root)!r} + chr(10))"
        )


def set_up(environment: Environment) -> bool:
    """Install `environment` unless it is current. Returns whether anything was installed.

    Raises:
        StepFailed: with the step, the end of the log and what to do.
    """
    if environment.is_current():
        return False
    started = time.monotonic()
    # Without a stamp an interrupted removal or installation is never taken for a finished one.
    environment.stamp.unlink(missing_ok=True)
    shutil.rmtree(environment.directory, ignore_errors=True)
    with environment.log.open("w", encoding="utf-8") as log:
        for step in environment.steps():
            print(f"{environment.name} environment: {step.name}", flush=True)
            _run(step, environment, log.fileno())
    environment.stamp.write_text(environment.fingerprint())
    print(f"{environment.name} environment: ready after {time.monotonic() - started:.0f} s", flush=True)
    return True


def _run(step: Step, environment: Environment, log: int) -> None:
    finished = subprocess.run(step.command, cwd=environment.root, stdout=log, stderr=subprocess.STDOUT, check=False)
    if finished.returncode != 0:
        tail = environment.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        raise StepFailed(
            "\n".join(tail) + f"\n{environment.name} environment: the step '{step.name}' failed (whole log: "
            f"{environment.log}); mend what it names and run the same command again"
        )


def has_nvidia_gpu() -> bool:
    """Whether this machine runs NVIDIA's driver."""
    return Path("/dev/nvidiactl").exists()


def lock_file(environment: str, accelerator: str, root: Path = ROOT) -> Path:
    """The lock that `environment` follows on this machine (`auto`), or on one with or without GPUs."""
    gpu = accelerator == "gpu" or (accelerator == "auto" and has_nvidia_gpu())
    name = "generate-gpu.txt" if environment == "generate" and gpu else f"{environment}.txt"
    if environment == "launcher":
        name = "train.txt"
    return root / "containers" / "locks" / name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "environments", nargs="*", default=[], help="train, generate, launcher; the first two if none is named"
    )
    parser.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="gpu on a login node without GPUs whose compute nodes have them",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.environments) - {*ENVIRONMENTS, "launcher"}
    if unknown:
        parser.error(f"unknown environment {sorted(unknown)[0]!r}; choose from {', '.join(ENVIRONMENTS)}, launcher")
    if sys.version_info[:2] != PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"Python = {found}: Python 3.11 is needed; run this with python3.11", file=sys.stderr)
        return 2
    (ROOT / ".venv").mkdir(exist_ok=True)
    with (ROOT / ".venv" / "setup.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for name in arguments.environments or ENVIRONMENTS:
            try:
                set_up(Environment(name, lock_file(name, arguments.accelerator), ROOT))
            except StepFailed as failure:
                print(failure, file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
