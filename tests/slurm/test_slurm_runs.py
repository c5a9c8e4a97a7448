"""Whole runs on a real two-node Slurm: they end with the weights of a run on one machine, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sami_nemo.run_dir import read_json, read_jsonl, sha256_file
from tests.slurm.two_nodes import TwoNodes

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
# Against hanging. A run of one iteration takes about 3 minutes on two idle cores, and two go on at the same time.
TIMEOUT = 1800
# Steps enough to be caught in the middle; nothing saves between them unless asked to.
EXPERIMENT = ("iterations=1", "judge=none", "train.batches=8", "train.checkpoint_every=100")
# Two engines share the sampling; a tensor-parallel pair trains. One thread each, as two processes have two cores.
LAYOUT = ("generate.engines=2", "train.tensor_parallel=2", "hardware.threads_per_process=1")
ONE_MACHINE = ("hardware.devices_per_node=2",)
# Both nodes are this machine, whose name need not resolve.
TWO_NODES = (
    "cluster=slurm",
    "hardware.nodes=2",
    "cluster.default.environment.PET_LOCAL_ADDR=127.0.0.1",
    "cluster.default.environment.GLOO_SOCKET_IFNAME=lo",
)


class Run:
    """A run of the debug recipe below `directory`, and the commands that a user gives."""

    def __init__(self, slurm: TwoNodes, directory: Path, name: str, *words: str) -> None:
        self.slurm = slurm
        self.root = directory / name
        self._directory = directory
        places = (f"runs_dir={directory}", f"model.path={directory}/tiny-random", f"name={name}")
        words = ("recipe=sami_debug", *places, *EXPERIMENT, *LAYOUT, *words)
        self._command = [sys.executable, str(REPOSITORY / "launcher_scripts" / "main.py"), *words]
        self._environment = os.environ | slurm.environment

    def launch(self, *more: str, status: int = 0) -> str:
        done = subprocess.run(
            [*self._command, *more],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == status, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def start(self) -> subprocess.Popen[str]:
        """The launcher in the background."""
        return subprocess.Popen(
            self._command,
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until(self, holds: Callable[[], bool], what: str, closely: bool = False) -> None:
        """Wait for what lasts; or `closely` for a moment, without asking Slurm in between, which may take longer."""
        deadline = time.monotonic() + TIMEOUT
        while not holds():
            assert time.monotonic() < deadline, f"{what} never came\n{self.status()}"
            assert closely or not self.failed(), self.status()
            time.sleep(0.01 if closely else 0.5)

    def status(self) -> str:
        return self.launch("action=status", status=1 if self.failed() else 0)

    def failed(self) -> bool:
        """Whether nothing is left to happen, and the last stage is not finished."""
        return not self.queue() and not self.finished("report_1")

    def finished(self, stage: str) -> bool:
        return (self.root / "manifests" / f"{stage}.json").exists()

    def queue(self) -> dict[str, str]:
        """Slurm's state by job id, of all jobs."""
        return dict(line.split() for line in self.slurm.run("squeue", "-h", "-r", "-o", "%i %T").splitlines())

    def job(self, stage: str) -> str:
        return read_json(self.root / "jobs" / "jobs.json")[stage]

    def restarts(self, stage: str) -> int:
        fields = self.slurm.run("scontrol", "show", "job", self.job(stage)).split()
        return int(next(field for field in fields if field.startswith("Restarts=")).removeprefix("Restarts="))

    def steps(self) -> int:
        """Training steps that are logged."""
        files = [self.root / "iteration_1" / place / "steps.jsonl" for place in ("train.partial", "train")]
        return max(len(read_jsonl(file)) if file.exists() else 0 for file in files)

    def training_log(self) -> str:
        log = self.root / "logs" / "train_1.log"
        return log.read_text() if log.exists() else ""

    def weights(self) -> str:
        return sha256_file(self.root / "iteration_1" / "hf" / "model.safetensors")

    def processes(self, *words: str) -> list[int]:
        """Processes of the run's stages, or those whose command line has all of `words`."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"SAMI_EVENTS={self.root}".encode() in (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if mine and all(word in command for word in words):
                found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, generate_python: Path) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one_machine_under_way(slurm: TwoNodes, directory: Path) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
    run = Run(slurm, directory, "one_machine", *ONE_MACHINE)
    with run.start() as launcher:
        yield run, launcher
        launcher.terminate()


@pytest.fixture(scope="module")
def two_nodes(slurm: TwoNodes, directory: Path, one_machine_under_way: object) -> tuple[Run, str]:
    """A run that nobody disturbs, just submitted, and what the launcher printed.

    It goes on beside the run on one machine: starting up, neither keeps two cores busy.
    """
    run = Run(slurm, directory, "two_nodes", *TWO_NODES)
    return run, run.launch()


@pytest.fixture(scope="module")
def one_machine(two_nodes: object, one_machine_under_way: tuple[Run, subprocess.Popen[str]]) -> Run:
    """The same layout without Slurm, at its end."""
    run, launcher = one_machine_under_way
    _, errors = launcher.communicate(timeout=TIMEOUT)
    assert launcher.returncode == 0, errors
    return run


def test_the_launcher_returns_while_its_jobs_wait(two_nodes: tuple[Run, str]) -> None:
    run, printed = two_nodes
    assert "16 of 16 stages submitted" in printed and "action=status" in printed
    assert len(run.queue()) > 10


def test_two_nodes_end_with_the_weights_of_one_machine(
    slurm: TwoNodes, two_nodes: tuple[Run, str], one_machine: Run
) -> None:
    run, _ = two_nodes
    run.wait_until(lambda: run.finished("report_1"), "the end")

    assert run.weights() == one_machine.weights()
    bound = [entry["mi_bound"] for entry in read_json(run.root / "metrics.json")["iterations"]]
    assert bound == [entry["mi_bound"] for entry in read_json(one_machine.root / "metrics.json")["iterations"]]
    fields = slurm.run("scontrol", "show", "job", run.job("train_1")).split()
    assert {"NumNodes=2", "NodeList=n[1-2]", "JobState=COMPLETED", "Restarts=0"} <= set(fields)
    first, second = run.job("sample_0_engine_0"), run.job("sample_0_engine_1")
    assert (first, second) == (f"{first[:-2]}_0", f"{first[:-2]}_1"), "one array of two"
    answered = [len(read_jsonl(run.root / "iteration_0" / f"engine_{k}" / "evaluation.jsonl")) for k in (0, 1)]
    assert answered == [8, 8]
    assert "16 finished" in run.status()
    again = run.launch()
    assert "job" not in again and "bound" in again, "the table of results"


def test_disturbed_it_ends_with_the_same_weights(slurm: TwoNodes, directory: Path, one_machine: Run) -> None:
    run = Run(slurm, directory, "disturbed", *TWO_NODES)
    run.launch()

    sampled = run.root / "iteration_0" / "engine_0.partial" / "evaluation.jsonl"
    run.wait_until(lambda: sampled.exists(), "sampling", closely=True)
    slurm.run("scontrol", "requeue", run.job("sample_0_engine_0"))

    # As Slurm does ahead of a time limit. Steps take a tenth of a second, so it is asked while the model is built.
    run.wait_until(lambda: "training from step 0 of 8" in run.training_log(), "the start of training")
    slurm.run("scancel", "--batch", "--signal=USR1", run.job("train_1"))
    run.wait_until(lambda: run.restarts("train_1") == 1, "the requeue after the signal")
    saved = run.steps()
    assert 1 <= saved < 8
    assert f"saved at step {saved} of 8" in run.training_log()

    # A worker dies in the middle of a step; the job is queued again by itself.
    run.wait_until(lambda: f"training from step {saved} of 8" in run.training_log(), "the restart")
    workers = run.processes("sami_nemo.train", "--iteration")
    run.wait_until(lambda: run.steps() > saved, "a step after the restart", closely=True)
    os.kill(max(workers), signal.SIGKILL)
    run.wait_until(lambda: run.finished("report_1"), "the end")

    assert run.restarts("sample_0_engine_0") == 1
    assert run.restarts("train_1") == 2
    assert run.training_log().count(f"training from step {saved} of 8") == 2
    assert run.weights() == one_machine.weights()


def test_a_broken_stage_stops_the_chain(slurm: TwoNodes, directory: Path) -> None:
    # Answers of eight random tokens hardly ever end with a full stop, so too few groups are left.
    run = Run(slurm, directory, "broken", *TWO_NODES, "generate.engines=1", "generate.require_full_stop=true")
    run.launch()
    deadline = time.monotonic() + TIMEOUT
    while run.queue():
        assert time.monotonic() < deadline
        time.sleep(0.5)

    shown = run.launch("action=status", status=1)
    assert "groups_0 failed:\n" in shown and "sampled queries survived the filters" in shown
    assert not run.finished("groups_0")
    later = ("evaluate_0", "report_0", "train_1", "sample_1", "groups_1", "evaluate_1", "report_1")
    for stage in later:
        assert not (run.root / "logs" / f"{stage}.slurm.log").exists(), f"{stage} has started"
    assert run.restarts("groups_0") == 0, "the user's error is not tried again"
    assert "groups_0.log" in run.launch("action=logs")


def test_cancelled_nothing_stays(slurm: TwoNodes, directory: Path) -> None:
    run = Run(slurm, directory, "cancelled", *TWO_NODES)
    run.launch()
    run.wait_until(lambda: len(run.processes("sami_nemo.generate.sample")) > 0, "sampling", closely=True)
    assert "runs" in run.status()
    assert "cancelled" in run.launch("action=cancel")
    assert run.queue() == {}
    assert run.processes() == []
    assert "nothing of this run is under way" in run.launch("action=cancel")
    # Where one left off: what is finished is not submitted again.
    assert "13 of 16 stages submitted" in run.launch()
    run.launch("action=cancel")
    assert run.queue() == {}


def test_a_run_with_slurm_is_not_run_here_as_well(slurm: TwoNodes, directory: Path) -> None:
    run = Run(slurm, directory, "queued", *ONE_MACHINE, "cluster=slurm")
    run.launch()
    here = run.launch("cluster=local", status=2)
    run.launch("action=cancel")
    assert "starts" not in here and "finished" not in here
