"""Slurm itself looks at the scripts of the shipped cluster recipes, and at what preflight makes of its refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.two_nodes import TwoNodes

MAIN = Path(__file__).parents[2] / "launcher_scripts" / "main.py"
IMAGES = ("cluster.train_image=/images/train.sqsh", "cluster.generate_image=/images/generate.sqsh")


def launch(slurm: TwoNodes, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(MAIN), "cluster=slurm", f"runs_dir={directory}/runs", *words],
        cwd=directory,
        env=os.environ | slurm.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("recipe", ["sami_mixtral", "sami_mistral", "sami_mistral_hh"])
@pytest.mark.parametrize("images", [(), IMAGES], ids=["no images", "images"])
def test_every_script_that_a_dry_run_prints(
    recipe: str, images: tuple[str, ...], slurm: TwoNodes, tmp_path: Path
) -> None:
    printed = launch(slurm, tmp_path, f"recipe={recipe}", *images, "dry_run=true")
    assert printed.returncode == 0, printed.stderr
    assert list(tmp_path.iterdir()) == []
    scripts = [part.partition("\n")[2] for part in printed.stdout.split("\n---\n# sbatch ")[1:]]
    assert len(scripts) > 20
    for script in scripts:
        assert script.startswith("#!/usr/bin/env bash\n#SBATCH ")
        done = subprocess.run(
            ["sbatch", "--test-only"],
            input=script,
            env=os.environ | slurm.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\n{script}"


def test_preflight_tells_everything_that_is_wrong_and_submits_nothing(slurm: TwoNodes, tmp_path: Path) -> None:
    done = launch(
        slurm,
        tmp_path,
        "recipe=sami_mixtral",
        *IMAGES,
        "hardware.nodes=16",
        "train.pipeline_parallel=1",
        "cluster.sample.partition=nowhere",
        "cluster.default.mounts=['/no/such/place:/x']",
        "judge.api_key_variable=NO_SUCH_KEY",
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    for part in (
        "sbatch refuses evaluate, train: ",
        "sbatch refuses sample: ",
        "cluster image = /images/train.sqsh: no such container image",
        "cluster image = /images/generate.sqsh",
        "cluster mounts = /no/such/place",
        "model.path = mistralai/Mixtral-8x7B-v0.1:",
        "judge.api_key_variable = NO_SUCH_KEY",
    ):
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert "mend cluster.sample" in done.stderr
    assert not any((tmp_path / "runs").glob("**/*.sh"))
    assert slurm.run("squeue", "-h") == ""


def test_a_controller_that_is_down_is_one_line(slurm: TwoNodes, tmp_path: Path) -> None:
    """As a login node sees it whose configuration names another cluster."""
    elsewhere = tmp_path / "slurm.conf"
    text = (slurm.directory / "slurm.conf").read_text()
    elsewhere.write_text(text.replace("SlurmctldHost=localhost", "SlurmctldHost=localhost\nMessageTimeout=2"))
    elsewhere.write_text("\n".join("SlurmctldPort=1" if "SlurmctldPort" in line else line for line in elsewhere.read_text().splitlines()))  # fmt: skip
    variables = os.environ | slurm.environment | {"SLURM_CONF": str(elsewhere)}
    words = [sys.executable, str(MAIN), "recipe=sami_debug", "cluster=slurm", f"runs_dir={tmp_path}/runs"]
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("squeue = ")


def test_without_slurm_it_says_so(tmp_path: Path) -> None:
    words = [sys.executable, str(MAIN), "recipe=sami_debug", "cluster=slurm", f"runs_dir={tmp_path}/runs"]
    variables = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "cluster = sbatch: no such program; run this on a login node" in done.stderr
