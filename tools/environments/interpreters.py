"""Find a Python that an environment can be made with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from sami_nemo.errors import EnvironmentMismatch

# Preferred first. The pinned networkx has no build for Python 3.10; numpy 1.26, which the pinned megatron-core needs, has
# none for 3.13. The launcher's few packages have.
SUPPORTED = {
    "train": ((3, 11), (3, 12)),
    "generate": ((3, 11), (3, 12)),
    "launcher": ((3, 11), (3, 12), (3, 13)),
}
QUESTION = "import importlib.util, sys; print(*sys.version_info[:2], importlib.util.find_spec('ensurepip') is not None)"
# A Python answers in a moment; on a busy network file system it may take some seconds.
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Interpreter:
    """A Python that answered."""

    path: str
    version: tuple[int, int]
    has_ensurepip: bool
    """`venv` needs it; Debian and Ubuntu keep it in a package of its own."""

    @property
    def name(self) -> str:
        return "python" + dotted(self.version)


def find_interpreter(environment: str, running: str = sys.executable) -> str:
    """The path of a Python for `environment`: `running` if it fits, else one on the path, else one of uv's.

    Raises:
        EnvironmentMismatch: there is none.
    """
    supported = SUPPORTED[environment]
    fitting = []
    for path in (running, *_on_path(["python" + dotted(version) for version in supported])):
        interpreter = ask(path)
        if interpreter is not None and interpreter.version in supported:
            if interpreter.has_ensurepip:
                return path
            fitting.append(interpreter)
    uv = shutil.which("uv")
    if uv is not None:
        return _from_uv(uv, environment)
    if fitting:
        found = fitting[0]
        remedy = f"it has no ensurepip, which environments are made with; run `apt install {found.name}-venv`"
        raise EnvironmentMismatch(found.name, found.path, remedy)
    raise _none(environment, "install one of them, or uv, which fetches one")


def ask(path: str) -> Interpreter | None:
    """What the Python at `path` is; None if it does not run, like a shim of pyenv for a version that is not chosen."""
    try:
        done = subprocess.run(
            [path, "-c", QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        major, minor, has_ensurepip = done.stdout.split()
        return Interpreter(path, (int(major), int(minor)), has_ensurepip == "True")
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def _on_path(names: list[str]) -> Iterator[str]:
    """Every program of these names: the first on the path may be one that does not run."""
    for name in names:
        for directory in os.get_exec_path():
            path = shutil.which(name, path=directory)
            if path is not None:
                yield path


def _from_uv(uv: str, environment: str) -> str:
    """A Python that `uv` knows or fetches."""
    wanted = [dotted(version) for version in SUPPORTED[environment]]
    for version in wanted:
        path = _uv_finds(uv, version)
        if path is not None:
            return path
    print(f"{environment} environment: let uv fetch Python {wanted[0]}", flush=True)
    fetched = subprocess.run([uv, "python", "install", wanted[0]], capture_output=True, text=True, check=False)
    path = _uv_finds(uv, wanted[0])
    if path is None:
        reason = (fetched.stderr.strip().splitlines() or ["no Python found afterwards"])[-1].strip()
        raise _none(environment, f"install one of them; `uv python install {wanted[0]}` failed ({reason})")
    return path


def _uv_finds(uv: str, version: str) -> str | None:
    # Not that of an environment which happens to be active or near.
    done = subprocess.run([uv, "python", "find", "--system", version], capture_output=True, text=True, check=False)
    interpreter = ask(done.stdout.strip()) if done.returncode == 0 else None
    complete = interpreter is not None and interpreter.has_ensurepip and dotted(interpreter.version) == version
    return interpreter.path if interpreter is not None and complete else None


def _none(environment: str, remedy: str) -> EnvironmentMismatch:
    names = [dotted(version) for version in SUPPORTED[environment]]
    wanted = " or ".join([", ".join(names[:-1]), names[-1]])
    running = ".".join(map(str, sys.version_info[:3]))
    return EnvironmentMismatch("Python", running, f"the {environment} environment needs Python {wanted}; {remedy}")


def dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
