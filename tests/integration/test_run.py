"""The whole loop through the command line, with real vLLM and real training; killed at any point, it ends the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sami_nemo.run_dir import read_json, read_jsonl, sha256_file

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
# The loop takes about 4 minutes on two idle cores.
TIMEOUT = 900


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, generate_python: Path) -> Path:
    return tmp_path_factory.mktemp("runs")


def command(workspace: Path, name: str, *overrides: str) -> list[str]:
    launcher = str(REPOSITORY / "launcher_scripts" / "main.py")
    places = [f"runs_dir={workspace}", f"model.path={workspace}/tiny-random"]
    return [sys.executable, launcher, "recipe=sami_debug", f"name={name}", "iterations=3", *places, *overrides]


def complete(workspace: Path, name: str, *overrides: str) -> str:
    finished = subprocess.run(
        command(workspace, name, *overrides), capture_output=True, text=True, timeout=TIMEOUT, cwd=workspace
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout


def weights(workspace: Path, name: str, iteration: int) -> str:
    return sha256_file(workspace / name / f"iteration_{iteration}" / "hf" / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(workspace: Path) -> str:
    """Output of a run that nobody interrupts."""
    return complete(workspace, "undisturbed")


def test_three_iterations(workspace: Path, undisturbed: str) -> None:
    run = workspace / "undisturbed"
    metrics = read_json(run / "metrics.json")
    assert metrics["recipe"] == "sami_debug"
    assert [entry["iteration"] for entry in metrics["iterations"]] == [0, 1, 2, 3]
    for entry in metrics["iterations"]:
        assert entry["mi_bound"]["mean"] <= entry["mi_bound"]["max"]
        assert entry["mi_bound"]["n"] == 4 and entry["response_tokens"]["n"] == 16
    steps = [len(read_jsonl(run / f"iteration_{n}" / "train" / "steps.jsonl")) for n in (1, 2, 3)]
    assert steps == [1, 2, 3]
    exports = [run / f"iteration_{n}" / "hf" / "README.md" for n in (1, 2, 3)]
    assert all(card.read_text().startswith("---\nbase_model: ") for card in exports)
    assert len({weights(workspace, "undisturbed", n) for n in (1, 2, 3)}) == 3
    held_out = {row["id"] for row in read_jsonl(run / "queries" / "evaluation.jsonl")}
    trained = [read_jsonl(run / f"iteration_{n}" / "groups" / "training.jsonl") for n in (0, 1, 2)]
    used = [{row["query"]["id"] for row in rows} for rows in trained]
    assert not held_out & set.union(*used)
    assert not used[0] & used[1], "iterations 1 and 2 train on different halves"
    assert "bound" in undisturbed
    times = {row["stage"]: row for row in metrics["stages"]}
    assert {"sample_0", "train_1", "evaluate_3"} <= times.keys()
    for row in times.values():
        assert row["start_up"] + row["work"] + row["saving"] == pytest.approx(row["seconds"], abs=0.5)
    # Models are loaded before the work, and exported after it.
    assert times["sample_0"]["start_up"] > 1 and times["train_1"]["start_up"] > 1 and times["train_1"]["saving"] > 0
    assert "train_1: finished in 0:" in undisturbed and "(start-up 0:" in undisturbed


def test_a_finished_run_does_nothing_again(workspace: Path, undisturbed: str) -> None:
    assert "starts" in undisturbed
    assert "starts" not in complete(workspace, "undisturbed")


def test_another_configuration_is_refused(workspace: Path, undisturbed: str) -> None:
    refused = subprocess.run(
        command(workspace, "undisturbed", "train.lr=0.5"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=workspace,
    )
    assert refused.returncode == 2
    assert "train.lr" in refused.stderr and "0.5" in refused.stderr


def processes_of(run: Path) -> list[int]:
    """Every process whose command line names the run directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(run).encode() in arguments:
                found.append(int(entry.name))
    return found


def kill_when(condition: Callable[[], bool], workspace: Path, name: str) -> None:
    """Start or resume the run, and kill -9 all of it as soon as `condition` holds."""
    launcher = subprocess.Popen(
        command(workspace, name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=workspace
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert launcher.poll() is None and time.monotonic() < deadline, "the moment to kill never came"
            time.sleep(0.002)
    finally:
        launcher.kill()
        for process in processes_of(workspace / name):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        launcher.wait()


def test_killed_anywhere_it_ends_with_the_same_weights(workspace: Path, undisturbed: str) -> None:
    run = workspace / "killed"
    sampled = run / "iteration_0" / "responses.partial" / "evaluation.jsonl"
    kill_when(lambda: sampled.exists() and sampled.stat().st_size > 0, workspace, "killed")
    kill_when(lambda: (run / "iteration_1" / "train.partial" / "checkpoints").exists(), workspace, "killed")
    kill_when(lambda: any((run / "iteration_1").glob("hf.partial/*.safetensors")), workspace, "killed")
    kill_when(lambda: (run / "manifests" / "train_1.json").exists(), workspace, "killed")
    assert weights(workspace, "killed", 1) == weights(workspace, "undisturbed", 1)
    first = read_jsonl(workspace / "undisturbed" / "iteration_0" / "responses" / "training.jsonl")
    assert read_jsonl(run / "iteration_0" / "responses" / "training.jsonl") == first
