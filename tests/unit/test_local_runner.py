"""Runs of real processes: a launcher that runs three small stages, killed, stopped and resumed at every point."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from sami_nemo.config.compose import compose
from sami_nemo.errors import RunDirectoryError
from sami_nemo.launch.claim import check_unchanged, open_run
from sami_nemo.launch.console import LiveView, PlainView, Progress, print_results
from sami_nemo.launch.local_runner import GRACE_SECONDS, StageError, StageFailed, run_stages
from sami_nemo.launch.manifests import config_sha256
from sami_nemo.launch.stage_log import EventReader
from sami_nemo.launch.stages import Stage
from sami_nemo.progress import EVENTS_VARIABLE, duration
from sami_nemo.run_dir import RunDir, read_json, sha256_file, write_json, write_text

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
except (local_runner.StageError, local_runner.StageFailed, local_runner.RunDirectoryError) as error:
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
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
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


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


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


def test_two_launchers_do_not_share_a_run(toy: Toy) -> None:
    toy.tell("second", "hang")
    launcher, pids = toy.hanging()
    status, output = toy.launch()
    assert status == 3 and "RunDirectoryError" in output and "another launcher" in output
    assert all(alive(pid) for pid in pids), "the refused launcher must leave the other's processes alone"
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE)


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


def test_a_changed_configuration_is_refused_with_its_keys(tmp_path: Path) -> None:
    words = ["recipe=sami_debug", f"runs_dir={tmp_path}", "name=mine"]
    with open_run(compose(words)):
        pass
    check_unchanged(compose(words))
    with pytest.raises(RunDirectoryError) as refused:
        check_unchanged(compose([*words, "train.lr=0.5", "seed=3"]))
    line = str(refused.value)
    assert "seed was 0, is 3; train.lr was 0.001, is 0.5" in line and "name=" in line and "\n" not in line
    assert line.count(" was ") == 2


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with (
        pytest.raises(RunDirectoryError, match=r"thesis\.tex"),
        open_run(compose(["recipe=sami_debug", f"runs_dir={tmp_path}", "name=mine"])),
    ):
        pass


@pytest.mark.parametrize("text", ["", ": [bad", "- a list", "\xff"])
def test_a_damaged_configuration_is_one_line(text: str, tmp_path: Path) -> None:
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path}", "name=mine"])
    config.run_dir.mkdir()
    RunDir(config.run_dir).config.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunDirectoryError, match=r"config\.yaml = .*: not a configuration"):
        check_unchanged(config)


@pytest.mark.parametrize("obstacle", ["runs", "runs/mine"])
def test_a_file_in_place_of_the_directory_is_one_line(obstacle: str, tmp_path: Path) -> None:
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_text("…")
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path / 'runs'}", "name=mine"])
    with pytest.raises(RunDirectoryError, match="cannot be made or written"), open_run(config):
        pass


def test_events_are_read_in_whole_lines_from_the_present_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"done": 1}\n')
    reader = EventReader(path)
    assert reader.new() == []
    with path.open("a") as file:
        file.write('{"done": 2}\n{"do')
        file.flush()
        assert reader.new() == [{"done": 2}]
        file.write('ne": 3}\ntorn{\n{"done": 4}\n')
    assert reader.new() == [{"done": 3}, {"done": 4}]
    assert reader.new() == []


def test_time_left_counts_from_the_first_event_of_the_attempt() -> None:
    progress = Progress()
    now = time.time()
    progress.add({"time": now - 10, "done": 80, "total": 100, "unit": "steps"})
    assert progress.seconds_left() is None
    progress.add({"time": now, "done": 90, "total": 100, "unit": "steps", "loss": 0.25, "tokens_per_s": 812})
    # Ten steps took 10 s and ten are left; from zero it would have been 1 s.
    left = progress.seconds_left()
    assert left is not None and 9.5 < left <= 10
    assert progress.line() == "90/100 steps, loss 0.25, tokens_per_s 812, 0:10 left"
    progress.add({"time": now, "done": 100, "total": 100, "unit": "steps"})
    assert progress.seconds_left() is None


def test_live_view_shows_every_stage() -> None:
    stages = [Stage(name, "train", "toy") for name in ("model", "train_1", "sample_1")]
    terminal = io.StringIO()
    with LiveView(Console(file=terminal, force_terminal=True, width=120), stages) as view:
        view.skipped(stages[0])
        view.started(stages[1], resumed=True)
        view.progress(stages[1], {"time": time.time(), "done": 1, "total": 4, "unit": "steps", "loss": 0.6931})
        view.refresh()
        view.failed(stages[1], "failed")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search("runs [(]resumed[)] +1/4 steps +loss 0.6931", shown)
    last = shown[shown.rindex("stage ") :]
    for name, state in (("model", "finished before"), ("train_1", "failed"), ("sample_1", "waits")):
        assert re.search(rf"{name} +{state}", last)
    assert "elapsed 0:0" in last


def test_live_view_of_a_long_run_shows_what_runs() -> None:
    stages = [Stage(f"stage_{n}", "train", "toy") for n in range(40)]
    terminal = io.StringIO()
    with LiveView(Console(file=terminal, force_terminal=True, width=120, height=20), stages) as view:
        for stage in stages[:30]:
            view.skipped(stage)
        view.started(stages[30], resumed=False)
    last = terminal.getvalue()[terminal.getvalue().rindex("state ") :]
    assert "stage_30" in last and "stage_0 " not in last and last.count("stage_") <= 17


def test_results_are_a_table(tmp_path: Path) -> None:
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path}"])
    bound = {"mean": 0.149, "sem": 0.02, "n": 24, "max": 1.3863}
    entries = [
        {"iteration": 0, "mi_bound": bound, "response_tokens": {"mean": 60.04, "sem": 1, "n": 96}},
        {
            "iteration": 1,
            "mi_bound": bound | {"mean": 0.377},
            "mi_bound_gain": {"mean": 0.228, "sem": 0.01, "n": 24},
            "response_tokens": {"mean": 61, "sem": 1, "n": 96},
            "win_rate": {"base": {"mean": 0.625, "sem": 0.1, "n": 24}},
        },
    ]
    judge = {"name": "pmi", "method": "pmi", "proxy": True}
    write_json(RunDir(config.run_dir).metrics, {"recipe": "sami_debug", "judge": judge, "iterations": entries})
    shown = io.StringIO()
    print_results(Console(file=shown, width=120), config)
    numbers = ("0.149 ± 0.020", "0.377 ± 0.020", "1.386", "0.228 ± 0.010", "60.0 ± 1.0", "0.62 ± 0.10")
    for part in (*numbers, "PMI proxy", "metrics.json", "hf", "report/index.html"):
        assert part in shown.getvalue()


def test_plain_view_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(Console())
    stage = Stage("sample_0", "generate", "toy")
    view.started(stage, resumed=False)
    view.progress(stage, {"time": 1.0, "done": 1, "total": 2, "unit": "responses"})
    view.progress(stage, {"time": 2.0, "done": 2, "total": 2, "unit": "responses", "tokens_per_s": 99.51})
    view.finished(stage, 65, {"start_up": 14.6, "work": 50.2, "saving": 0.2})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "sample_0: starts",
        "sample_0: 2/2 responses, tokens_per_s 99.51",
        "sample_0: finished in 1:05 (start-up 0:15, work 0:50)",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (65, "1:05"), (3725, "1:02:05")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


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
