"""A launcher with three small stages, whose processes can be told to fail in many ways."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sami_nemo.run_dir import RunDir

ROOT = Path(__file__).parents[2]
# Seconds until something hangs, on a slow machine under load.
PATIENCE = 300

# The stage `first` reads control/text; `second` has two outputs and works in five steps that it can go on from; `third`
# reads both. What control/<stage> says is done instead of an undisturbed run.
STAGE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from sami_nemo.progress import report, report_error
stage, run, control = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
behaviour = (control / stage).read_text() if (control / stage).exists() else ""
with open(control / "calls", "a") as calls:
    calls.write(stage + "\\n")
print("this is", stage)
if behaviour == "crash":
    raise ValueError("the toy broke")
if behaviour == "out of memory":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "fill":
    with open(run / "filling", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
if behaviour == "user error":
    report_error("data.source = nowhere: give a file")
    sys.exit(1)
if behaviour == "nothing":
    sys.exit(0)
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def out(name):
    path = run / (name + ".partial")
    path.mkdir(exist_ok=True)
    return path
if stage == "first":
    (out("one") / "text").write_text((control / "text").read_text())
if stage == "second":
    steps = out("two") / "steps"
    done = len(steps.read_text()) if steps.exists() else 0
    print("from step", done)
    for step in range(done, 5):
        with open(steps, "a") as file:
            file.write("x")
        report(step + 1, 5, "steps", loss=0.5)
        if step == 2 and behaviour in ("hang", "stubborn"):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (control / "pids").write_text(f"{os.getpid()} {child.pid}")
            time.sleep(600)
    (out("two b") / "text").write_text((run / "one" / "text").read_text().upper())
if stage == "third":
    (out("three") / "text").write_text((run / "two b" / "text").read_text() + (run / "two" / "steps").read_text())
"""

LAUNCHER = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from sami_nemo.config.compose import compose
from sami_nemo.errors import UserError
from sami_nemo.launch import local_runner, manifests
from sami_nemo.launch.console import PlainView
from sami_nemo.launch.stages import Stage
runs, control, stage_file, crash_at = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
config = compose(["recipe=sami_debug", f"runs_dir={runs}", "name=toy"])
root = config.run_dir
stages = [
    Stage("first", "train", "toy", outputs=(root / "one",)),
    Stage("second", "train", "toy", inputs=("first",), outputs=(root / "two", root / "two b")),
    Stage("third", "generate", "toy", inputs=("first", "second"), outputs=(root / "three",)),
]
def killed_at(module, name, key):
    original = getattr(module, name)
    def crashing(path, *rest):
        if crash_at == ["before", name, key(path)]:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, *rest)
        if crash_at == ["after", name, key(path)]:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, crashing)
killed_at(manifests, "commit", lambda path: path.name)
killed_at(manifests, "write_json", lambda path: path.name)
try:
    local_runner.run_stages(
        config, stages, PlainView(Console()), {"train": {"torch": "1.2"}},
        command_of=lambda stage, config: [sys.executable, stage_file, stage.name, str(root), control],
    )
except (local_runner.StageError, local_runner.StageFailed, UserError) as error:
    print(type(error).__name__, error)
    sys.exit(3)
except KeyboardInterrupt:
    sys.exit(130)
"""


class Toy:
    """A run in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.runs = directory / "runs"
        self.root = self.runs / "toy"
        self.run = RunDir(self.root)
        self.control = directory / "control"
        self.control.mkdir()
        self.stage_file = directory / "stage.py"
        self.stage_file.write_text(STAGE)
        self.launcher_file = directory / "launcher.py"
        self.launcher_file.write_text(LAUNCHER)
        self.variables = {"PYTHONPATH": str(ROOT)}
        self.tell("text", "hello")

    def tell(self, stage: str, behaviour: str) -> None:
        (self.control / stage).write_text(behaviour)

    def calls(self) -> list[str]:
        """Stages that were run since the last time this was asked."""
        file = self.control / "calls"
        calls = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return calls

    def start(self, *crash_at: str) -> subprocess.Popen[str]:
        words = [sys.executable, self.launcher_file, self.runs, self.control, self.stage_file, *crash_at]
        variables = os.environ | self.variables
        return subprocess.Popen(
            [str(word) for word in words], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def launch(self, *crash_at: str) -> tuple[int, str]:
        """Exit status and output of a launcher that runs to its end, or to its kill."""
        process = self.start(*crash_at)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def hanging(self) -> tuple[subprocess.Popen[str], list[int]]:
        """A launcher whose second stage hangs after three steps, and the processes of that stage."""
        process = self.start()
        wait_for(lambda: (self.control / "pids").exists() and len((self.control / "pids").read_text().split()) == 2)
        return process, [int(pid) for pid in (self.control / "pids").read_text().split()]

    def result(self) -> str:
        return (self.root / "three" / "text").read_text()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie, whose parent has not asked after it, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
