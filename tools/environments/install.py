"""What an environment consists of, and its installation step by step."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.environments.interpreters import SUPPORTED, dotted

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ("train", "generate")
# What launcher_scripts/main.py imports. They bring what they need themselves.
LAUNCHER_PACKAGES = ("huggingface_hub", "hydra-core", "jinja2", "pydantic", "pyyaml", "rich")
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
        """Whichever of the supported Pythons it has: another one would serve no better."""
        return (
            self.stamp.is_file()
            and self.stamp.read_text() == self.fingerprint()
            and self.python.exists()
            and self._python_version() in map(dotted, SUPPORTED[self.name])
        )

    def _python_version(self) -> str:
        """Major and minor, as `venv` writes them down; empty if it did not."""
        lines = (self.directory / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        versions = [line.split("=")[1].strip() for line in lines if line.split("=")[0].strip() == "version"]
        return ".".join(versions[0].split(".")[:2]) if versions else ""

    def steps(self, interpreter: str) -> Iterator[Step]:
        """The installation with the Python at `interpreter`, in order."""
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        install = [*pip, "install", "--progress-bar=off"]
        yield Step("create the virtual environment", [interpreter, "-m", "venv", "--clear", str(self.directory)])
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


def set_up(environment: Environment, interpreter: str) -> bool:
    """Install `environment` with the Python at `interpreter` unless it is current. Returns whether anything was installed.

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
        for step in environment.steps(interpreter):
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
