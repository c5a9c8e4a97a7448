"""What a job does around its stage, with every way that a stage can end. Slurm itself is in tests/slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.errors import RunDirectoryError
from sami_nemo.launch import manifests
from sami_nemo.launch.claim import claim
from sami_nemo.launch.run_state import read_states, status_lines
from sami_nemo.launch.slurm.job import EXIT_FAILED, begin, end, stop_path
from sami_nemo.launch.slurm.script import NOTHING_TO_DO, START_AGAIN
from sami_nemo.launch.stages import Stage, plan
from sami_nemo.run_dir import RunDir, partial, read_json

PROGRESS = '{"done": 1, "total": 4, "unit": "steps", "loss": 0.5}\n'


class Bench:
    """The first stage of a run, as a job finds it."""

    def __init__(self, directory: Path, **cluster: int) -> None:
        words = [f"cluster.{key}={value}" for key, value in cluster.items()]
        self.config: Config = compose(["recipe=sami_debug", f"runs_dir={directory}", "cluster=slurm", *words])
        self.run = RunDir(self.config.run_dir)
        self.run.root.mkdir(parents=True)
        claim(self.config, self.run)
        self.run.log("x").parent.mkdir()
        self.stages = plan(self.config)
        self.stage: Stage = self.stages[0]

    def begin(self) -> int:
        return begin(self.config, self.run, self.stage)

    def end(self, status: int, seconds: float = 3.0, ended: float | None = None) -> int:
        return end(self.config, self.run, self.stage, status, seconds, ended)

    def write_outputs(self) -> None:
        for path in self.stage.outputs:
            partial(path).write_text("{}")

    def log(self, text: str) -> None:
        with self.run.log(self.stage.name).open("a") as log:
            log.write(text)

    def event(self, line: str) -> None:
        with self.run.events(self.stage.name).open("a") as events:
            events.write(line)

    def status(self) -> str:
        return "\n".join(status_lines(self.run, read_states(self.run, self.stages, None, [])))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("sami_nemo.launch.slurm.job.check_versions", lambda environment: {"torch": "1"})
    return Bench(tmp_path)


def test_a_stage_that_ends_well_is_finished_and_not_begun_again(bench: Bench) -> None:
    assert bench.begin() == 0
    bench.write_outputs()
    assert bench.end(0) == 0
    assert manifests.inspect(bench.run, bench.stage) is manifests.State.FINISHED
    assert bench.begin() == NOTHING_TO_DO
    assert [line.split() for line in bench.status().splitlines()][1] == ["principles", "finished", "3", "s"]


def test_the_wall_time_is_split_by_the_marks_of_the_last_attempt(bench: Bench) -> None:
    """Killed once; then the script begins at 100, the stage's work at 114, its saving at 160, and all is over at 164."""
    bench.begin()
    bench.event('{"time": 20.0, "phase": "work"}\n{"time": 30.0, "phase": "saving"}\n')
    bench.begin()
    bench.write_outputs()
    bench.event('{"time": 114.0, "phase": "work"}\n{"time": 160.0, "phase": "saving"}\n')
    # Recorded long after it ended, where a container has to start for it.
    assert bench.end(0, seconds=64.0, ended=164.0) == 0
    manifest = read_json(bench.run.manifest("principles"))
    assert manifest["wall_seconds"] == 64.0
    assert manifest["phases"] == {"start_up": 14.0, "work": 46.0, "saving": 4.0}


def test_a_killed_job_finds_what_is_there(bench: Bench) -> None:
    bench.begin()
    bench.write_outputs()
    # No `end`: the node was lost. The job is queued again and goes on in the outputs.
    assert bench.begin() == 0
    assert all(partial(path).exists() for path in bench.stage.outputs)


def test_a_crash_is_tried_again_once_and_then_told(bench: Bench) -> None:
    bench.log("of an earlier attempt\n")
    for expected in (START_AGAIN, EXIT_FAILED):
        bench.begin()
        bench.log("Traceback: the GPU fell off\n")
        assert bench.end(1) == expected
    status = bench.status()
    assert "principles failed:\nTraceback: the GPU fell off\nit failed with exit status 1\n" in status
    assert "earlier attempt" not in status
    assert str(bench.run.log("principles")) in status


def test_another_job_starts_counting_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.begin()
    assert bench.end(1) == START_AGAIN
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    bench.begin()
    assert bench.end(1) == START_AGAIN


def test_the_user_s_error_is_not_tried_again(bench: Bench) -> None:
    bench.event('{"error": "of an earlier attempt"}\n')
    bench.begin()
    bench.event(PROGRESS + '{"error": "data.source = x: give a file"}\n')
    # torch.distributed.run ends with 1, whatever its processes ended with.
    assert bench.end(1) == EXIT_FAILED
    assert "principles failed:\ndata.source = x: give a file\n" in bench.status()


@pytest.mark.parametrize("status", [0, 1, 143])
def test_what_was_asked_to_stop_is_queued_again_and_no_failure(bench: Bench, status: int) -> None:
    for _ in range(3):
        bench.begin()
        stop_path(bench.run, bench.stage).touch()
        assert bench.end(status) == START_AGAIN
        assert not stop_path(bench.run, bench.stage).exists()
    assert "failed" not in bench.status()


def test_what_ended_well_although_asked_to_stop_is_finished(bench: Bench) -> None:
    bench.begin()
    bench.write_outputs()
    stop_path(bench.run, bench.stage).touch()
    assert bench.end(0) == 0


def test_an_exit_with_zero_without_outputs_is_a_failure(tmp_path: Path, bench: Bench) -> None:
    bench.begin()
    assert bench.end(0) == START_AGAIN
    bench.begin()
    assert bench.end(0) == EXIT_FAILED
    assert "it ended without writing" in bench.status()


def test_a_task_that_a_signal_ended_is_told_by_its_name(bench: Bench) -> None:
    """srun adds 128 to the number of the signal, as shells do."""
    bench.begin()
    bench.end(137)
    assert "it was killed by SIGKILL (out of memory?)" in bench.status()


@pytest.mark.parametrize("status", [126, 127, 160, 193, 254, 255])
def test_any_exit_status_is_recorded_and_tried_again(status: int, bench: Bench) -> None:
    bench.begin()
    assert bench.end(status) == START_AGAIN
    bench.begin()
    assert bench.end(status) == EXIT_FAILED
    assert f"it failed with exit status {status}" in bench.status()


def test_it_is_not_queued_again_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(bench.config.cluster.requeues))
    bench.begin()
    stop_path(bench.run, bench.stage).touch()
    assert bench.end(1) == EXIT_FAILED


def test_a_stage_whose_input_is_not_finished_is_refused(bench: Bench) -> None:
    bench.stage = next(stage for stage in bench.stages if stage.name == "queries")
    with pytest.raises(RunDirectoryError, match="stage principles is not finished"):
        bench.begin()
