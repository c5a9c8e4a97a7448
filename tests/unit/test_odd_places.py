"""A checkout, and a directory of runs, whose paths have spaces, commas, brackets and every other sign that something reads."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from sami_nemo.config.compose import compose
from sami_nemo.config.files import parse_config
from sami_nemo.config.spelling import quoted
from sami_nemo.errors import ConfigError, EnvironmentMismatch
from sami_nemo.launch.console import PlainView
from sami_nemo.launch.input_checks import check_places
from sami_nemo.launch.local_runner import run_stages
from sami_nemo.launch.slurm.script import jobs_of
from sami_nemo.launch.stages import ROOT, Stage, command_line, plan
from sami_nemo.queries.loaders import local_files
from sami_nemo.run_dir import RunDir
from tests.unit.odd_texts import AWKWARD, LOOK_LIKE_NUMBERS, ODD_NAME
from tools.environments import machine

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
VARIABLES = {f"X{number}": value for number, value in enumerate([*LOOK_LIKE_NUMBERS, *AWKWARD])}
IMAGES = ("cluster.train_image=/images/train.sqsh", "cluster.generate_image=/images/generate.sqsh")
# Enough for sbatch to read a script; it then finds no controller.
SLURM_CONF = """
ClusterName=none
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=1
AuthType=auth/none
CredType=cred/none
MessageTimeout=2
NodeName=n1
PartitionName=p Nodes=n1 Default=YES
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in a directory of that name, with this one's environments."""
    directory = tmp_path_factory.mktemp("copy") / ODD_NAME
    for name in ("conf", "recipes", "sami_nemo", "launcher_scripts", "tools", "containers"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", directory)
    (directory / ".venv").symlink_to(ROOT / ".venv")
    return directory


def launch(checkout: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    command = [sys.executable, "launcher_scripts/main.py", *words]
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_there(recipe: str, checkout: Path) -> None:
    done = launch(checkout, f"recipe={recipe}", "dry_run=true")
    assert (done.returncode, done.stderr) == (0, "")
    config = parse_config(yaml.safe_load(done.stdout))
    assert config.recipe == recipe
    line = next(line for line in done.stdout.splitlines() if " -m sami_nemo." in line)
    # What is printed can be pasted.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line.removeprefix('# ')}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[0] == f"PYTHONPATH={checkout}" and f"{checkout}/.venv/generate/bin/python" in words


@pytest.mark.parametrize("action", ["status", "logs", "cancel"])
def test_runs_are_looked_after_there(action: str, checkout: Path) -> None:
    done = launch(checkout, "recipe=sami_debug", f"action={action}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("run directory = runs/sami_debug: no such run")


def test_the_preflight_passes_there(checkout: Path) -> None:
    """It says what a machine without GPUs lacks, and no more."""
    done = launch(checkout, "recipe=sami_mistral", "model.path=/no/such/model", OPENAI_API_KEY="x", PATH=str(checkout))
    fields = [line.partition(" = ")[0] for line in done.stderr.splitlines()]
    assert done.returncode == 2 and "model.path" in fields
    assert not [field for field in fields if "environment" in field], done.stderr


def test_make_finds_its_way_there(checkout: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    words = ["make", "--no-print-directory", "run", "ARGS=recipe=sami_debug dry_run=true", "PYTHON=true"]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe: sami_debug" in done.stdout


@pytest.mark.slow
def test_a_run_is_carried_out_there(checkout: Path, generate_python: Path) -> None:
    """One iteration, with vLLM, torchrun and NeMo; its runs are in a directory of another such name."""
    words = ("recipe=sami_debug", "iterations=1", "judge=none", "runs_dir=it's #1, {of} $my=[b]")
    done = launch(checkout, *words, "cluster.train.environment.OMP_NUM_THREADS=1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = RunDir(checkout / "it's #1, {of} $my=[b]" / "sami_debug")
    assert run.metrics.exists() and (run.report / "index.html").exists() and (run.hf(1) / "model.safetensors").exists()
    assert (checkout / "models").is_dir()
    assert launch(checkout, *words).stdout.count("finished before") == len(run.manifests())


def test_a_colon_in_the_repository_s_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sami_nemo.launch import input_checks

    monkeypatch.setattr(input_checks, "ROOT", Path("/a:b"))
    with pytest.raises(ConfigError, match=r"^repository = /a:b: its path has a colon"):
        check_places(compose([]))
    with pytest.raises(EnvironmentMismatch, match=r"^repository = /a:b: its path has a colon"):
        machine.check_place(Path("/a:b"))


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["cluster=slurm", "runs_dir=../a\\b"], "runs_dir = "),
        (["cluster=slurm", "runs_dir=../a,b", *IMAGES], "cluster mounts = "),
        (["cluster=slurm", "runs_dir=../a:b", *IMAGES], "cluster mounts = "),
    ],
)
def test_what_slurm_cannot_be_told_is_refused(
    words: list[str], start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "a\\b/sami_smol", "a,b/sami_smol", "a:b/sami_smol"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match=f"^{start}.*choose another place$"):
        check_places(compose(words))
    check_places(compose([word for word in words if not word.startswith("runs_dir")]))
    check_places(compose([word for word in words if word != "cluster=slurm"]))


def test_a_line_break_in_a_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a\nb", "a\udcff"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(ConfigError, match=r"^working directory = .*line break, or is not UTF-8"):
            check_places(compose([]))
    with pytest.raises(ConfigError, match=r"^runs_dir = .*line break"):
        compose(["runs_dir=a\nb"])


def scripts(*words: str) -> dict[str, str]:
    config = compose(["cluster=slurm", "recipe=sami_debug", *words])
    return {job.name: job.script for job in jobs_of(config, plan(config))}


@pytest.fixture
def odd_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / ODD_NAME
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def test_sbatch_reads_the_paths_as_they_are(odd_desk: Path, tmp_path: Path) -> None:
    if shutil.which("sbatch") is None:
        pytest.skip("no Slurm")
    (tmp_path / "slurm.conf").write_text(SLURM_CONF)
    comment = "it's  #1 \\ %j"
    flags = ["--comment=two words #1", "--constraint='a|b'", "--gres=gpu:a100:8", "--exclusive"]
    script = scripts(
        f"runs_dir={ODD_NAME}",
        "generate.engines=2",
        f"cluster.default.account={comment}",
        f"cluster.default.flags=[{','.join(map(quoted, flags))}]",
    )["sample_0"]
    done = subprocess.run(
        ["sbatch", "-vvv", "--test-only"],
        input=script,
        env=os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.findall(r'Found in script, argument "(.*)"$', done.stderr, flags=re.MULTILINE)
    runs = f"{odd_desk}/{ODD_NAME}/sami_debug".replace("%", "%%")
    assert f"--output={runs}/logs/sample_0_engine_%a.slurm.log" in found
    assert f"--chdir={odd_desk}" in found
    assert f"--account={comment}" in found
    assert {"--comment=two words #1", "--constraint=a|b", "--gres=gpu:a100:8", "--exclusive"} <= set(found)


def test_srun_is_told_of_a_log_without_symbols_to_replace(odd_desk: Path) -> None:
    script = scripts(f"runs_dir={ODD_NAME}")["train_1"]
    # As bash reads it, with a srun that prints its words and a stage that is to be done.
    program = 'srun() { printf "%s\\n" "$@"; }; scontrol() { :; }\n' + script
    done = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_ID": "7"},
    )
    printed = done.stdout.splitlines()
    runs = f"{odd_desk}/{ODD_NAME}/sami_debug"
    assert f"--output={runs.replace('%', '%%')}/logs/train_1.log" in printed
    assert f"{ODD_NAME}/sami_debug" in printed
    assert done.returncode == 0, done.stderr


def test_scripts_there_pass_the_shell_s_linter(odd_desk: Path, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck")
    words = [f"cluster.default.environment.{name}={value}" for name, value in VARIABLES.items()]
    for name, script in scripts(f"runs_dir={ODD_NAME}", *words).items():
        (tmp_path / f"{name}.sh").write_text(script)
        subprocess.run(["bash", "-n", tmp_path / f"{name}.sh"], check=True)
    # A variable may well be what looks like a mistake.
    words = ["shellcheck", "--exclude=SC1003,SC1097,SC2016", *map(str, tmp_path.glob("*.sh"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_variables_arrive_in_jobs_as_written() -> None:
    words = [f"cluster.default.environment.{name}={value}" for name, value in VARIABLES.items()]
    found = scripts(*words, "cluster.train.environment.X0=own", "cluster.train.environment.OMP_NUM_THREADS=03")
    assert environment_of(found["queries"]).items() >= VARIABLES.items()
    train = environment_of(found["train_1"])
    assert train.items() >= (VARIABLES | {"X0": "own", "OMP_NUM_THREADS": "03"}).items()


def test_no_variable_is_one_that_the_script_sets_itself() -> None:
    script = scripts("recipe=sami_mixtral")["train_1"]
    own = set(re.findall(r"^(?:export )?(\w+)=", script.partition("export PYTHONPATH")[2], flags=re.MULTILINE))
    assert {"stage", "status", "SAMI_EVENTS"} <= own
    for name in {name for name in own if name.islower() or name.startswith("SAMI_")}:
        with pytest.raises(ConfigError, match="choose another name"):
            compose([f"cluster.default.environment.{name}=x"])


def environment_of(script: str) -> dict[str, str]:
    """What a job's stage would find."""
    done = subprocess.run(
        ["bash", "-c", script.partition("stage=")[0] + "\nenv -0"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "SLURM_CPUS_ON_NODE": "1"},
    )
    assert done.stderr == ""
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0")[:-1])


def test_variables_arrive_in_stages_of_this_machine_as_written(tmp_path: Path) -> None:
    words = [f"cluster.default.environment.{name}={value}" for name, value in VARIABLES.items()]
    own = "cluster.train.environment.X0=own"
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path / ODD_NAME}", *words, own])
    place = config.run_dir
    stages = [Stage(name, "train", "toy", outputs=(place / name,)) for name in ("queries", "train_1")]

    def command_of(stage: Stage, config: Any) -> list[str]:
        return ["bash", "-c", 'env -0 > "$1"', "bash", f"{place / stage.name}.partial"]

    run_stages(config, stages, PlainView(Console(file=io.StringIO())), {}, command_of)
    for name, expected in (("queries", VARIABLES), ("train_1", VARIABLES | {"X0": "own"})):
        entries = (place / name).read_text().split("\0")[:-1]
        assert dict(entry.split("=", 1) for entry in entries).items() >= expected.items()
    # And in what a dry run prints.
    line = command_line(stages[0], config).partition(f"{sys.prefix}")[0]
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    assert {f"{name}={value}" for name, value in VARIABLES.items()} <= set(printed.stdout.split("\0"))


def test_files_of_queries_may_have_brackets_in_their_names(odd_desk: Path) -> None:
    (odd_desk / "a[b].jsonl").touch()
    (odd_desk / "ab.jsonl").touch()
    assert local_files("a[b].jsonl") == [Path("a[b].jsonl")]
    assert local_files(f"{odd_desk}/a[b].jsonl") == [odd_desk / "a[b].jsonl"]
    assert local_files("*.jsonl") == [Path("a[b].jsonl"), Path("ab.jsonl")]
    assert local_files("a?.jsonl") == [Path("ab.jsonl")]
    assert local_files("sami_nemo/queries/sample_queries.jsonl") == [ROOT / "sami_nemo/queries/sample_queries.jsonl"]
