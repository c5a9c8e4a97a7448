"""What a run shows: events, progress, tables."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from sami_nemo.config.compose import compose
from sami_nemo.launch.console import LiveView, PlainView, Progress, print_results
from sami_nemo.launch.stage_log import EventReader
from sami_nemo.launch.stages import Stage
from sami_nemo.progress import duration
from sami_nemo.run_dir import RunDir, write_json


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
