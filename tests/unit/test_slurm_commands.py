"""What is read out of the output of Slurm's commands, given by small programs in their place. Slurm itself is in tests/slurm."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.errors import EnvironmentMismatch, StorageError
from sami_nemo.launch.claim import claim
from sami_nemo.launch.run_state import read_states
from sami_nemo.launch.slurm.commands import ask_slurm, refusal
from sami_nemo.launch.slurm.jobs import cancel, live_jobs, recorded_ids, submit
from sami_nemo.launch.stages import plan
from sami_nemo.run_dir import RunDir

# Queues the script, unless told not to, and prints `says` with the id in the place of @.
SBATCH = """#!/bin/sh
cd {place} || exit 9
for script; do :; done
echo "$@" >> calls
id=$(cat next)
[ -e no_queue ] || echo "$id|PENDING|Priority|$script" >> queue
echo $((id + 1)) > next
sed "s/@/$id/" says
cat complains >&2
exit "$(cat status)"
"""
SQUEUE = """#!/bin/sh
cd {place} && cat around queue && exit "$(cat squeue_status)"
"""
SCANCEL = """#!/bin/sh
cd {place} && echo "$@" > cancelled && cat around
"""


class FakeSlurm:
    """Its programs are the first on the path."""

    def __init__(self, directory: Path) -> None:
        self.place = directory / "slurm"
        self.place.mkdir()
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
            (self.place / name).write_text(text.format(place=self.place))
            (self.place / name).chmod(0o755)
        self.tell(next="101", says="@\n", complains="", status="0", queue="", around="", squeue_status="0", calls="")
        self.config = compose(["recipe=sami_debug", f"runs_dir={directory}", "cluster=slurm", "iterations=1"])
        self.run = RunDir(self.config.run_dir)
        self.run.root.mkdir()
        claim(self.config, self.run)
        self.run.jobs.mkdir()
        self.stages = plan(self.config)

    def tell(self, **files: str) -> None:
        for name, text in files.items():
            (self.place / name).write_bytes(text.encode("utf-8", errors="surrogateescape"))

    def submit(self) -> dict[str, str]:
        return submit(self.config, self.run, self.stages)

    def script(self, stage: str) -> Path:
        return (self.run.jobs / f"{stage}.sh").resolve()

    def queue(self, *lines: str) -> dict[str, str]:
        """What is read of `lines`, with ~ for the directory of scripts: state by id."""
        self.tell(queue="\n".join(line.replace("~", str(self.run.jobs.resolve())) for line in lines) + "\n")
        return {job.id: job.state for job in live_jobs(self.run, self.stages)}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.place}{os.pathsep}{os.environ['PATH']}")
    return fake


@pytest.mark.parametrize(
    "says",
    [
        "@\n",
        "@",
        "@\r\n",
        "  @  \n",
        "@;cluster\n",
        "@;my-cluster.site_1\r\n",
        "\n\n@\n\n",
        "Welcome to the cluster!\n2 nodes are down\n@\n",
        "@\nsbatch: Your job will be charged 12 units\n",
        "sbatch: lua: partition set to gpu\n@;cluster\n",
        "CLUSTER: main\n@\n",
        "\x1b[1mNews of 2026-01-02\x1b[0m\n@\n",
        "caf\udce9 closed\n@\n",
        "Submitted batch job @\n",
        "Submitted batch job @ on cluster main\n",
        "@\n@\n",
    ],
)
def test_the_job_s_id_among_other_lines(says: str, slurm: FakeSlurm) -> None:
    slurm.tell(says=says.replace("@\n@\n", "101\n101\n"))
    slurm.stages = slurm.stages[:1]
    assert slurm.submit() == {"principles": "101"} == recorded_ids(slurm.run)


def test_jobs_wait_for_the_ids_that_were_read(slurm: FakeSlurm) -> None:
    slurm.tell(says="Welcome!\n@;cluster\n")
    submitted = slurm.submit()
    assert list(submitted) == [stage.name for stage in slurm.stages]
    assert list(submitted.values()) == [str(101 + number) for number in range(len(slurm.stages))]
    calls = (slurm.place / "calls").read_text().splitlines()
    assert calls[0] == f"--parsable {slurm.script('principles')}"
    assert all(set(call.split("afterok:")[1].split()[0].split(":")) <= set(submitted.values()) for call in calls[2:])


@pytest.mark.parametrize(
    ("says", "status"),
    [
        ("Welcome to the cluster!\n", "0"),
        ("", "0"),
        ("@\n", "1"),
        ("7\n@\n", "0"),
        ("", "1"),
        ("job @ submitted\n", "0"),
        ("@x\n@.5\n-@\n0\n", "0"),
    ],
)
def test_what_sbatch_does_not_say_clearly_is_asked_of_squeue(says: str, status: str, slurm: FakeSlurm) -> None:
    """It is with Slurm all the same, and is neither forgotten nor submitted again."""
    slurm.tell(says=says, status=status)
    slurm.stages = slurm.stages[:1]
    assert slurm.submit()["principles"] == "101" == recorded_ids(slurm.run)["principles"]
    assert slurm.submit() == {}


@pytest.mark.parametrize(
    ("says", "complains", "status", "expected"),
    [
        ("Welcome!\nSee you\n", "", "0", "sbatch = Welcome! See you (exit status 0): "),
        ("", "", "0", "sbatch = (nothing) (exit status 0): "),
        ("@\n", "", "1", "sbatch = 101 (exit status 1): "),
        ("Hi\n", "sbatch: error: no such account\n", "1", "sbatch = no such account (exit status 1): "),
        ("\x1b[1mHi\x07\n", "", "0", "sbatch = [1mHi (exit status 0): "),
        ("word " * 1000, "", "0", "sbatch = word word "),
    ],
)
def test_what_is_not_with_slurm_is_refused_with_what_was_printed(
    says: str, complains: str, status: str, expected: str, slurm: FakeSlurm
) -> None:
    slurm.tell(says=says, complains=complains, status=status, no_queue="")
    with pytest.raises(EnvironmentMismatch) as refused:
        slurm.submit()
    line = str(refused.value)
    assert line.startswith(expected) and "principles is not with Slurm" in line
    assert "\n" not in line and len(line) < 600
    assert (slurm.place / "calls").read_text().count("\n") == 1 and recorded_ids(slurm.run) == {}
    (slurm.place / "no_queue").unlink()
    slurm.tell(says="@\n", status="0", complains="")
    assert slurm.submit()["principles"] == "102"


def test_where_squeue_fails_too_the_same_command_asks_again(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.tell(status="1", says="", complains="sbatch: error: Socket timed out on send/recv operation\n")
    original: Callable[..., object] = live_jobs
    answers = iter([original, None])

    def failing(run: RunDir, stages: object) -> object:
        answer = next(answers)
        if answer is None:
            raise EnvironmentMismatch("squeue", "Unable to contact slurm controller", "failed")
        return answer(run, stages)

    with monkeypatch.context() as patch:
        patch.setattr("sami_nemo.launch.slurm.jobs.live_jobs", failing)
        with pytest.raises(EnvironmentMismatch) as refused:
            slurm.submit()
    assert "Socket timed out" in str(refused.value) and "Unable to contact slurm" in str(refused.value)
    assert "not known whether principles is with Slurm" in str(refused.value)
    slurm.tell(status="0", says="@\n", complains="")
    assert "principles" not in slurm.submit()
    assert recorded_ids(slurm.run)["principles"] == "101"


def test_a_job_whose_record_could_not_be_written_is_found_again(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise StorageError(str(path), "(No space left on device)", "free space")

    slurm.stages = slurm.stages[:1]
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr("sami_nemo.launch.slurm.jobs.write_json", refuse)
        slurm.submit()
    assert recorded_ids(slurm.run) == {}
    assert slurm.submit() == {} and recorded_ids(slurm.run) == {"principles": "101"}


def test_answers_of_squeue_among_other_lines(slurm: FakeSlurm) -> None:
    slurm.tell(around="\r\nWelcome|to|the|cluster\nCLUSTER: main\nJOBID|STATE|REASON|COMMAND\n3 jobs are queued\n")
    assert slurm.queue(
        "5|RUNNING|None|~/principles.sh",
        "  6 | PENDING | Dependency | ~/model.sh \r",
        "7_2|PENDING|Resources|/elsewhere/model.sh",
        "slurm_load_jobs|error|of|something",
        "9|RUNNING|None|/with|bars/model.sh",
    ) == {"5": "RUNNING", "6": "PENDING"}


@pytest.mark.parametrize(
    "line", ["5|RUNNING|~/principles.sh", "x|RUNNING|None|~/principles.sh", "5 RUNNING ~/model.sh"]
)
def test_a_line_about_the_run_that_cannot_be_read_is_refused(line: str, slurm: FakeSlurm) -> None:
    with pytest.raises(EnvironmentMismatch, match=r"squeue = .*: a line about this run that cannot be read"):
        slurm.queue(line)


def test_unknown_states_are_under_way_and_ended_ones_are_not(slurm: FakeSlurm) -> None:
    live = slurm.queue(
        "5|EXPEDITING|None|~/principles.sh",
        "6|STAGE_OUT|None|~/model.sh",
        "7|COMPLETED|None|~/queries.sh",
        "8|REQUEUE_HOLD|None|~/sample_0.sh",
        "9|NODE_FAIL|None|~/train_1.sh",
    )
    assert live == {"5": "EXPEDITING", "6": "STAGE_OUT", "8": "REQUEUE_HOLD"}
    states = read_states(slurm.run, slurm.stages, None, live_jobs(slurm.run, slurm.stages))
    shown = {state.stage.name: state.state for state in states if state.job}
    assert shown == {"principles": "runs", "model": "runs", "sample_0": "waits"}
    submitted = slurm.submit()
    assert {"principles", "model", "sample_0"} & set(submitted) == set()
    assert {"queries", "train_1"} <= set(submitted)


def test_cancelled_by_the_ids_alone(slurm: FakeSlurm) -> None:
    slurm.tell(around="Welcome!\n")
    slurm.queue("5|RUNNING|None|~/principles.sh", "6_[0-3%2]|PENDING|None|~/sample_0.sh")
    cancel(live_jobs(slurm.run, slurm.stages))
    assert (slurm.place / "cancelled").read_text() == "6_[0-3%2] 5\n"


def test_a_failing_command_is_one_line_with_its_error(slurm: FakeSlurm) -> None:
    slurm.tell(squeue_status="1", around="Welcome!\n")
    with pytest.raises(EnvironmentMismatch, match=r"^squeue = Welcome!: failed; is this a login node"):
        ask_slurm("squeue")


def test_the_cluster_s_refusal_is_told_without_the_rest(slurm: FakeSlurm) -> None:
    complains = "Welcome!\nsbatch: error: lua: no budget\nallocation failure: Invalid account\n"
    slurm.tell(status="1", complains=complains)
    assert refusal("#!/bin/sh\n") == "lua: no budget"
    slurm.tell(complains="allocation failure: Invalid account\n", says="")
    assert refusal("#!/bin/sh\n") == "Invalid account"
    slurm.tell(status="0")
    assert refusal("#!/bin/sh\n") is None
