"""The real set-up tool in a small copy of the repository, with empty wheels under the real names."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from sami_nemo.versions import read_lock

ROOT = Path(__file__).parents[2]
VERSIONS = {
    "torch": "2.13.0",
    "nemo_toolkit": "2.7.3",
    "megatron_core": "0.15.3",
    "lightning": "2.4.0",
    "transformers": "4.57.6",
}


def make_wheel(directory: Path, name: str, version: str, requires: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Set-up tool, version check and a training lock whose packages are empty wheels in `wheels`."""
    for name in (
        "tools/setup_environments.py",
        "sami_nemo/__init__.py",
        "sami_nemo/errors.py",
        "sami_nemo/versions.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "wheels").mkdir()
    for package, version in VERSIONS.items():
        make_wheel(tmp_path / "wheels", package, version)
    write_lock(tmp_path, VERSIONS)
    return tmp_path


def write_lock(repository: Path, versions: dict[str, str]) -> None:
    locks = repository / "containers" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "train.txt").write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))


def set_up(repository: Path) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(repository / "wheels"),
    }
    command = [sys.executable, "tools/setup_environments.py", "train"]
    return subprocess.run(command, cwd=repository, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_installs_once_and_again_when_the_lock_changes(repository: Path) -> None:
    first = set_up(repository)
    assert (first.returncode, first.stderr) == (0, "")
    assert "ready after" in first.stdout
    # The environment finds the repository's package from anywhere.
    python = repository / ".venv" / "train" / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sami_nemo; print(sami_nemo.__file__)"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.strip() == str(repository / "sami_nemo" / "__init__.py")

    started = time.monotonic()
    second = set_up(repository)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert time.monotonic() - started < 1

    make_wheel(repository / "wheels", "added", "1.0")
    write_lock(repository, VERSIONS | {"added": "1.0"})
    assert "ready after" in set_up(repository).stdout
    assert list((repository / ".venv" / "train").rglob("added-1.0.dist-info"))


@pytest.mark.slow
def test_failed_install_names_the_step_and_the_next_call_mends_it(repository: Path) -> None:
    (repository / "wheels" / "lightning-2.4.0-py3-none-any.whl").rename(repository / "hidden")
    for _ in range(2):  # a failure leaves nothing that a second call takes for a finished installation
        failed = set_up(repository)
        assert failed.returncode == 1
        assert "lightning==2.4.0" in failed.stderr
        assert "the step 'install packages' failed" in failed.stderr.splitlines()[-1]
        assert str(repository / ".venv" / "train.log") in failed.stderr

    (repository / "hidden").rename(repository / "wheels" / "lightning-2.4.0-py3-none-any.whl")
    assert set_up(repository).returncode == 0


@pytest.mark.slow
def test_inconsistent_dependencies_fail(repository: Path) -> None:
    """pip would fetch the missing requirement; here its version contradicts the lock's."""
    make_wheel(repository / "wheels", "picky", "1.0", "Requires-Dist: lightning<2\n")
    write_lock(repository, VERSIONS | {"picky": "1.0"})
    failed = set_up(repository)
    assert failed.returncode == 1
    assert "picky" in failed.stderr


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_environments", ROOT / "tools" / "setup_environments.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_another_python_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool()
    monkeypatch.setattr(tool, "PYTHON", (3, 99))
    monkeypatch.setattr(sys, "argv", ["setup_environments.py"])
    assert tool.main() == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "3.11" in message


def test_each_accelerator_has_its_lock() -> None:
    tool = load_tool()
    assert tool.lock_file("generate", "gpu").name == "generate-gpu.txt"
    assert tool.lock_file("generate", "cpu").name == "generate.txt"
    assert tool.lock_file("train", "gpu") == tool.lock_file("train", "cpu")
    assert all(tool.lock_file(name, a).is_file() for name in tool.ENVIRONMENTS for a in ("auto", "cpu", "gpu"))


def test_the_launcher_s_packages_are_pinned_by_the_training_lock_and_bring_no_torch() -> None:
    tool = load_tool()
    pins = read_lock(tool.lock_file("launcher", "auto"))
    assert set(tool.LAUNCHER_PACKAGES) <= {name.replace("huggingface-hub", "huggingface_hub") for name in pins}
    environment = tool.Environment("launcher", tool.lock_file("launcher", "auto"), tool.ROOT)
    (install,) = [step.command for step in environment.steps() if step.name == "install packages"]
    assert f"--constraint={environment.lock}" in install
    assert not any(word.startswith(("--requirement", "torch", "nemo")) for word in install)
