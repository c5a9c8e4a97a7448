"""Job scripts: what they ask of Slurm, what they start, and whether a shell and the linter take them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.launch.slurm.script import Job, command_of, jobs_of
from sami_nemo.launch.stages import ROOT, plan

IMAGES = ("cluster.train_image=/images/train.sqsh", "cluster.generate_image='registry#team/generate:1'")


def jobs(*words: str) -> dict[str, Job]:
    config = compose(["cluster=slurm", *words])
    return {job.name: job for job in jobs_of(config, plan(config))}


def options(job: Job) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", job.script, flags=re.MULTILINE)
    return dict(lines)


def test_one_job_per_stage_and_one_array_per_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = jobs("recipe=sami_debug", "iterations=1", "judge=none", "generate.engines=3")
    expected = ["principles", "model", "queries"]
    for n in (0, 1):
        expected += [*([f"train_{n}"] if n else []), f"sample_{n}", f"merge_{n}", f"groups_{n}"]
        expected += [f"evaluate_{n}", f"report_{n}"]
    assert list(found) == expected
    assert options(found["sample_0"])["array"] == "0,1,2"
    assert '--engine "$SLURM_ARRAY_TASK_ID"' in found["sample_0"].script
    assert found["merge_0"].after == (
        *("principles", "queries", "model"),
        *(f"sample_0_engine_{k}" for k in range(3)),
    )
    assert command_of(found["report_0"]) == (
        f"sbatch --parsable --dependency=afterok:<evaluate_0> {tmp_path}/runs/sami_debug/jobs/report_0.sh"
    )


def test_training_takes_whole_nodes_and_meets_on_the_first() -> None:
    train = jobs("recipe=sami_mixtral")["train_1"]
    asked = options(train)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "1", "8")
    assert "exclusive" in asked and "requeue" in asked and asked["signal"].startswith("B:USR1@")
    assert "torch.distributed.run --nproc-per-node=8 --nnodes=2" in train.script
    assert "PET_RDZV_BACKEND=c10d" in train.script
    # Cores are those of the node that it lands on, not of the login node.
    assert "export OMP_NUM_THREADS=$((SLURM_CPUS_ON_NODE > 8 ? SLURM_CPUS_ON_NODE / 8 : 1))" in train.script


def test_an_engine_takes_its_gpus_and_text_takes_none() -> None:
    found = jobs("recipe=sami_mixtral", "generate.tensor_parallel=4", "generate.engines=2")
    asked = options(found["sample_0"])
    assert (asked["nodes"], asked["gpus-per-node"]) == ("1", "4")
    assert "exclusive" not in asked
    for name in ("queries", "groups_0", "merge_0", "report_0", "judge_1", "principles"):
        assert "gpus-per-node" not in options(found[name]), name
    # A writer that the stage serves itself needs an engine's GPUs.
    writer = jobs("recipe=sami_mixtral", "principles=local_writer", "generate.tensor_parallel=4")["principles"]
    assert options(writer)["gpus-per-node"] == "4"


def test_a_stage_asks_for_its_own_over_the_defaults() -> None:
    found = jobs(
        "recipe=sami_mixtral",
        "cluster.default.partition=gpu",
        "cluster.default.account=team",
        "cluster.default.flags=['--constraint=a100']",
        "cluster.train.partition=large",
        "cluster.train.time='2-00:00:00'",
        "cluster.train.flags=['--reservation=sami']",
        "cluster.train.memory=900G",
        "cluster.train.environment.NCCL_DEBUG=INFO",
        "cluster.default.environment.GREETING='two words'",
        "cluster.mpi=pmix",
    )
    train, groups = options(found["train_1"]), options(found["groups_0"])
    assert (train["partition"], groups["partition"]) == ("large", "gpu")
    assert train["account"] == groups["account"] == "team"
    assert (train["time"], train["mem"], train["reservation"]) == ("2-00:00:00", "900G", "sami")
    assert train["constraint"] == groups["constraint"] == "a100"
    assert "reservation" not in groups and "mem" not in groups
    assert "export NCCL_DEBUG=INFO\n" in found["train_1"].script and "NCCL_DEBUG" not in found["groups_0"].script
    assert "export GREETING='two words'\n" in found["groups_0"].script
    assert "srun --cpu-bind=none --kill-on-bad-exit=1 --mpi=pmix" in found["train_1"].script


def test_containers_are_of_the_stage_s_environment_and_named_by_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    found = jobs("recipe=sami_mixtral", *IMAGES, "cluster.default.mounts=['/scratch:/scratch']")
    train, sample = found["train_1"].script, found["sample_0"].script
    assert "--container-image=/images/train.sqsh" in train
    assert "--container-image='registry#team/generate:1'" in sample
    for script in (train, sample):
        assert '--container-name="sami_nemo_$SLURM_JOB_ID"' in script
        # The working directory holds the run and the hub's cache, which need no mounts of their own.
        assert f"--container-mounts='{ROOT}:{ROOT},{tmp_path}:{tmp_path},/scratch:/scratch' " in script
        assert "\n    python3 -m " in script
    assert ".venv" not in train
    assert "container" not in jobs("recipe=sami_mixtral")["train_1"].script.replace("containers", "")


def test_names_with_spaces_and_quotes_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "it's here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    script = jobs("recipe=sami_debug", "runs_dir='my runs'", *IMAGES)["train_1"].script
    printed = subprocess.run(
        ["bash", "-c", 'srun() { printf "%s\\n" "$@"; }; scontrol() { :; }; ' + script.partition("record begin")[0]
         + 'record begin; printf "%s\\n" "$SAMI_STOP"'],
        capture_output=True, text=True, check=True, env=os.environ | {"SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_ID": "7"},
    ).stdout.splitlines()  # fmt: skip
    assert "my runs/sami_debug" in printed
    assert printed[-1] == f"{directory}/my runs/sami_debug/logs/train_1.stop"


def test_the_address_of_the_first_node_among_other_lines() -> None:
    """`scontrol` may print a banner, and lines may end as on Windows."""
    script = jobs("recipe=sami_mixtral")["train_1"].script.partition("in_stage=")[0]
    answer = r"scontrol() { printf 'Welcome!\r\nNodeName=n7\r\n   NodeAddr=10.0.0.7\r\n NodeAddr=10.0.0.8\n'; }; "
    printed = subprocess.run(
        ["bash", "-c", f'{answer}{script}\nprintf "%s" "$PET_RDZV_ENDPOINT"'],
        capture_output=True, text=True, check=True,
        env=os.environ | {"SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n7"},
    )  # fmt: skip
    assert printed.stdout == "10.0.0.7:20007"


@pytest.mark.parametrize("recipe", ["sami_debug", "sami_mistral", "sami_mixtral"])
@pytest.mark.parametrize("words", [(), (*IMAGES, "cluster.mpi=pmi2", "generate.engines=4")], ids=["plain", "images"])
def test_every_script_passes_the_shell_s_linter(recipe: str, words: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck")
    for job in jobs(f"recipe={recipe}", *words).values():
        (tmp_path / f"{job.name}.sh").write_text(job.script)
    done = subprocess.run(["shellcheck", *map(str, tmp_path.glob("*.sh"))], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_settings_of_where_it_runs_are_no_part_of_results(tmp_path: Path) -> None:
    from sami_nemo.launch.claim import check_unchanged, claim
    from sami_nemo.run_dir import RunDir

    def config(*words: str) -> Config:
        return compose(["recipe=sami_debug", f"runs_dir={tmp_path}", *words])

    run = RunDir(tmp_path / "sami_debug")
    run.root.mkdir()
    claim(config(), run)
    check_unchanged(config("cluster=slurm", "cluster.train.time='10:00:00'", "cluster.train.environment.X=1"))
