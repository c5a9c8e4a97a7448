"""Runs of real processes: a launcher that runs three small stages, killed, stopped and resumed at every point."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from sami_nemo.config.compose import compose
from sami_nemo.launch.console import PlainView
from sami_nemo.launch.local_runner import GRACE_SECONDS, StageError, StageFailed, run_stages
from sami_nemo.launch.manifests import config_sha256
from sami_nemo.launch.stages import Stage
from sami_nemo.progress import EVENTS_VARIABLE
from sami_nemo.run_dir import RunDir, read_json, sha256_file, write_text
from tests.unit.no_flock import without_flock
from tests.unit.toy_run import PATIENCE, ROOT, Toy, alive, wait_for


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def test_stages_run_in_order_and_leave_manifests(toy: Toy) -> None:
    status, output = toy.launch()
    assert status == 0, output
    assert toy.calls() == ["first", "second", "third"]
    assert toy.result() == "HELLOxxxxx"
    assert "second: 5/5 steps, loss 0.5" in output
    assert "this is second" in toy.run.log("second").read_text()
    assert not list(toy.root.rglob("*.partial"))

    manifest = read_json(toy.run.manifest("second"))
    assert manifest["stage"] == "second" and manifest["versions"] == {"torch": "1.2"}
    assert manifest["wall_seconds"] >= 0
    assert manifest["made_from"]["config_sha256"] == config_sha256(toy.run)
    assert list(manifest["made_from"]["inputs"]) == ["first"]
    assert {name: file["size"] for name, file in manifest["outputs"].items()} == {"two/steps": 5, "two b/text": 5}
    for name, file in manifest["outputs"].items():
        assert file["sha256"] == sha256_file(toy.root / name)


def test_the_same_command_again_runs_nothing(toy: Toy) -> None:
    toy.launch()
    toy.calls()
    status, output = toy.launch()
    assert status == 0 and toy.calls() == []
    assert output.splitlines() == [f"{name}: finished before" for name in ("first", "second", "third")]


def test_a_moved_copy_is_finished_too(toy: Toy) -> None:
    """Copied files have other times; their contents are looked at."""
    toy.launch()
    toy.calls()
    for file in toy.root.rglob("text"):
        os.utime(file, (1, 1))
    assert toy.launch()[0] == 0 and toy.calls() == []


@pytest.mark.parametrize("damage", ["delete", "same size", "shorter", "one more file"])
def test_a_damaged_output_is_made_again(toy: Toy, damage: str) -> None:
    toy.launch()
    toy.calls()
    file = toy.root / "two b" / "text"
    if damage == "delete":
        file.unlink()
    elif damage == "one more file":
        (toy.root / "two b" / "more").write_text("?")
    else:
        file.write_text("WRONG" if damage == "same size" else "HEL")
    assert toy.launch()[0] == 0
    # The same result as before: nothing follows from it.
    assert toy.calls() == ["second"]
    assert toy.result() == "HELLOxxxxx"


def test_another_result_is_followed_through(toy: Toy) -> None:
    toy.launch()
    toy.calls()
    toy.tell("text", "bye")
    (toy.root / "one" / "text").unlink()
    assert toy.launch()[0] == 0
    assert toy.calls() == ["first", "second", "third"]
    assert toy.result() == "BYExxxxx"


def test_a_failure_stops_the_run_and_shows_why(toy: Toy) -> None:
    toy.tell("second", "crash")
    status, output = toy.launch()
    assert status == 3
    assert "StageFailed" in output and "ValueError: the toy broke" in output
    assert "second failed with exit status 1" in output and str(toy.run.log("second")) in output
    assert toy.calls() == ["first", "second"]
    assert not toy.run.manifest("second").exists()

    toy.tell("second", "")
    assert toy.launch()[0] == 0
    assert toy.calls() == ["second", "third"]
    # Logs are appended to, and the error of the first attempt is not shown again.
    assert toy.run.log("second").read_text().count("this is second") == 2


def test_a_killed_stage_says_by_what(toy: Toy) -> None:
    toy.tell("second", "out of memory")
    status, output = toy.launch()
    assert status == 3 and "stage second was killed by SIGKILL (out of memory?)" in output


def test_a_users_error_is_its_line_alone(toy: Toy) -> None:
    toy.tell("first", "user error")
    assert toy.launch() == (3, "first: starts\nfirst: failed\nStageError data.source = nowhere: give a file\n")
    # A later crash is not mistaken for it.
    toy.tell("first", "crash")
    assert "StageFailed" in toy.launch()[1]


def test_a_stage_without_its_output_has_failed(toy: Toy) -> None:
    toy.tell("second", "nothing")
    status, output = toy.launch()
    assert status == 3 and "second ended without writing" in output and "two b" in output
    assert toy.calls() == ["first", "second"]


@pytest.mark.parametrize("behaviour", ["hang", "stubborn"])
def test_killed_launcher_and_the_same_command_again(toy: Toy, behaviour: str) -> None:
    """`stubborn` outlives its launcher, until the next one comes."""
    toy.tell("second", behaviour)
    launcher, pids = toy.hanging()
    launcher.kill()
    launcher.communicate()
    if behaviour == "hang":
        wait_for(lambda: not alive(pids[0]))
    else:
        assert alive(pids[0])
    toy.tell("second", "")
    status, output = toy.launch()
    assert status == 0 and "second: goes on" in output
    assert not any(alive(pid) for pid in pids)
    assert toy.calls() == ["first", "second", "second", "third"]
    assert "from step 3" in toy.run.log("second").read_text()
    assert toy.result() == "HELLOxxxxx"


DISTRIBUTED = """
import os, signal, sys, time
from pathlib import Path
from sami_nemo.errors import DataError
from sami_nemo import stage_entry
from sami_nemo.run_dir import partial
def main(config, run, iteration):
    behaviour = Path(os.environ["TOY"]).read_text()
    if behaviour == "user error":
        raise DataError("groups", 3, "give more queries")
    if behaviour == "user error of rank 1":
        if os.environ["RANK"] == "1":
            raise DataError("groups", 4, "give more queries")
        time.sleep(600)
    if behaviour == "crash" and os.environ["RANK"] == "1":
        raise ValueError("rank 1 broke")
    if behaviour == "out of memory" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    output = partial(run.train(iteration))
    output.mkdir(parents=True, exist_ok=True)
    (output / os.environ["RANK"]).write_text(os.environ["OMP_NUM_THREADS"])
stage_entry.run(main, "train")
"""


@pytest.mark.slow
def test_distributed_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command: torch.distributed.run starts the processes, and what goes wrong in them comes through."""
    (tmp_path / "toy_stage.py").write_text(DISTRIBUTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SAMI_TRAIN_PYTHON", sys.executable)
    monkeypatch.setenv("TOY", str(tmp_path / "behaviour"))
    config = compose(["recipe=sami_smol_moe", f"runs_dir={tmp_path / 'runs'}", "name=toy"])
    run = RunDir(config.run_dir)
    stage = Stage("train_1", "train", "toy_stage", iteration=1, outputs=(run.train(1),), distributed=True)

    def attempt(behaviour: str) -> None:
        (tmp_path / "behaviour").write_text(behaviour)
        run_stages(config, [stage], PlainView(Console(file=io.StringIO())), {})

    with pytest.raises(StageError, match=r"^groups = 3: give more queries$"):
        attempt("user error")
    with pytest.raises(StageError, match=r"^groups = 4: give more queries$"):
        attempt("user error of rank 1")
    with pytest.raises(StageFailed) as failed:
        attempt("crash")
    assert "ValueError: rank 1 broke" in str(failed.value) and "ChildFailedError" not in str(failed.value)
    with pytest.raises(StageFailed, match=r"was killed by SIGKILL"):
        attempt("out of memory")
    attempt("work")
    assert {file.name: file.read_text() for file in run.train(1).iterdir()} == {"0": "1", "1": "1"}


def test_stopping_stops_everything(toy: Toy) -> None:
    toy.tell("second", "hang")
    launcher, pids = toy.hanging()
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 130 and output.endswith("second: stopped\n")
    wait_for(lambda: not any(alive(pid) for pid in pids))


def test_stopping_twice_stops_at_once(toy: Toy) -> None:
    """Who presses Ctrl-C again does not wait for a stage that ignores the first."""
    toy.tell("second", "stubborn")
    launcher, pids = toy.hanging()
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert launcher.poll() is None and alive(pids[0])
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=GRACE_SECONDS - 1)
    assert launcher.returncode == 130
    wait_for(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_two_launchers_do_not_share_a_run(flock: bool, toy: Toy) -> None:
    if not flock:
        toy.variables = without_flock(toy.control)
    toy.tell("second", "hang")
    launcher, pids = toy.hanging()
    status, output = toy.launch()
    assert status == 3 and "RunDirectoryError" in output and "another launcher" in output
    assert f"(process {launcher.pid} on {socket.gethostname()} since " in output and output.count("\n") == 1
    assert all(alive(pid) for pid in pids), "the refused launcher must leave the other's processes alone"
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE)
    toy.tell("second", "")
    assert toy.launch()[0] == 0


def test_without_flock_a_killed_launcher_holds_nothing(toy: Toy) -> None:
    toy.variables = without_flock(toy.control)
    toy.tell("second", "hang")
    launcher, _ = toy.hanging()
    launcher.kill()
    launcher.communicate()
    left = toy.root / ".lock.owner"
    assert left.exists()
    toy.tell("second", "")
    status, output = toy.launch()
    assert status == 0 and "second: goes on" in output
    assert not left.exists()


def test_without_flock_a_launcher_that_is_asked_to_stop_holds_nothing(toy: Toy) -> None:
    toy.variables = without_flock(toy.control)
    toy.tell("second", "hang")
    launcher, _ = toy.hanging()
    launcher.terminate()
    launcher.communicate(timeout=PATIENCE)
    assert not (toy.root / ".lock.owner").exists()


def test_without_flock_a_launcher_of_another_host_is_named(toy: Toy) -> None:
    toy.variables = without_flock(toy.control)
    toy.root.mkdir(parents=True)
    owner = {"host": "elsewhere", "process": 7, "started": "1", "since": "2026-01-02T03:04:05+0000"}
    (toy.root / ".lock.owner").write_text(json.dumps(owner))
    status, output = toy.launch()
    assert status == 3 and output.count("\n") == 1 and toy.calls() == []
    assert "process 7 on elsewhere since 2026-01-02T03:04:05+0000; if it is gone, remove " in output
    assert str(toy.root / ".lock.owner") in output and not toy.run.config.exists()
    (toy.root / ".lock.owner").unlink()
    assert toy.launch()[0] == 0


@pytest.mark.parametrize(
    ("crash_at", "again"),
    [
        (("after", "write_json", "second.attempt.json"), ["second"]),
        (("before", "commit", "two"), []),
        (("after", "commit", "two"), []),
        (("after", "commit", "two b"), []),
        (("after", "write_json", "second.json"), []),
    ],
)
def test_killed_while_finishing(toy: Toy, crash_at: tuple[str, ...], again: list[str]) -> None:
    """A stage that ended well is not repeated, wherever the launcher was killed after it."""
    assert toy.launch(*crash_at)[0] == -signal.SIGKILL
    assert [name for name in toy.calls() if name == "second"] == ([] if again else ["second"])
    assert toy.launch()[0] == 0
    assert toy.calls() == [*again, "third"]
    assert toy.result() == "HELLOxxxxx"
    assert not list(toy.root.rglob("*.partial"))


def test_what_was_made_from_other_inputs_is_not_gone_on_from(toy: Toy) -> None:
    toy.tell("second", "hang")
    launcher, _ = toy.hanging()
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE)
    assert (toy.root / "two.partial" / "steps").read_text() == "xxx"
    toy.tell("text", "bye")
    toy.tell("second", "")
    (toy.root / "one" / "text").unlink()
    status, output = toy.launch()
    assert status == 0 and "second: starts" in output
    assert toy.run.log("second").read_text().count("from step 0") == 2
    assert toy.result() == "BYExxxxx"


def test_stage_entry_reports_a_users_error(tmp_path: Path) -> None:
    """The real entry point, by a stage that cannot work: one line, status 2, and the event for the launcher."""
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path}", "model.path=/nowhere", "model.prepare=none"])
    from sami_nemo.config.files import dump_config

    run = RunDir(config.run_dir)
    write_text(run.config, dump_config(config))
    events = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "sami_nemo.base_model.prepare", "--run-dir", str(run.root)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), EVENTS_VARIABLE: str(events)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("model.path = /nowhere:") and done.stderr.count("\n") == 1
    assert json.loads(events.read_text().splitlines()[-1])["error"] == done.stderr.strip()
