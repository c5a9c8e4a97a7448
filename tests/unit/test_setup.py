"""The real set-up tool in a small copy of the repository, with empty wheels under the real names."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sami_nemo.errors import EnvironmentMismatch
from sami_nemo.versions import read_lock
from tests.unit.odd_texts import ODD_NAME
from tools.environments import command, install, interpreters, machine

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
    return copy_to(tmp_path)


def copy_to(place: Path) -> Path:
    for name in (
        "tools/__init__.py",
        "tools/setup_environments.py",
        *(str(path.relative_to(ROOT)) for path in (ROOT / "tools" / "environments").glob("*.py")),
        "sami_nemo/__init__.py",
        "sami_nemo/errors.py",
        "sami_nemo/file_lock.py",
        "sami_nemo/versions.py",
    ):
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(ROOT / name, place / name)
    (place / "wheels").mkdir()
    for package, version in VERSIONS.items():
        make_wheel(place / "wheels", package, version)
    write_lock(place, VERSIONS)
    return place


def write_lock(repository: Path, versions: dict[str, str]) -> None:
    locks = repository / "containers" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "train.txt").write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))


def set_up(repository: Path, python: Path | str = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(repository / "wheels"),
        **variables,
    }
    command = [str(python), "tools/setup_environments.py", "train"]
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

    created = python.parent.stat().st_mtime_ns
    second = set_up(repository)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert python.parent.stat().st_mtime_ns == created, "nothing is made anew"

    make_wheel(repository / "wheels", "added", "1.0")
    write_lock(repository, VERSIONS | {"added": "1.0"})
    assert "ready after" in set_up(repository).stdout
    assert list((repository / ".venv" / "train").rglob("added-1.0.dist-info"))


@pytest.mark.slow
def test_installs_at_any_path(tmp_path: Path) -> None:
    odd = copy_to(tmp_path / ODD_NAME)
    shutil.move(odd / "wheels", tmp_path / "wheels")
    done = set_up(odd, PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert (done.returncode, done.stderr) == (0, "")
    assert set_up(odd, PIP_FIND_LINKS=str(tmp_path / "wheels")).stdout == ""


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


def test_each_accelerator_has_its_lock() -> None:
    assert install.lock_file("generate", "gpu").name == "generate-gpu.txt"
    assert install.lock_file("generate", "cpu").name == "generate.txt"
    assert install.lock_file("train", "gpu") == install.lock_file("train", "cpu")
    assert all(install.lock_file(name, a).is_file() for name in install.ENVIRONMENTS for a in ("auto", "cpu", "gpu"))


def test_the_launcher_s_packages_are_pinned_by_the_training_lock_and_bring_no_torch() -> None:
    pins = read_lock(install.lock_file("launcher", "auto"))
    assert set(install.LAUNCHER_PACKAGES) <= {name.replace("huggingface-hub", "huggingface_hub") for name in pins}
    environment = install.Environment("launcher", install.lock_file("launcher", "auto"), install.ROOT)
    (command,) = [step.command for step in environment.steps(sys.executable) if step.name == "install packages"]
    assert f"--constraint={environment.lock}" in command
    assert not any(word.startswith(("--requirement", "torch", "nemo")) for word in command)


# Which Python.


def make_python(path: Path, version: str, ensurepip: bool = True) -> Path:
    """A program that answers as a Python of this version would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version.replace('.', ' ')} {ensurepip}\n")
    path.chmod(0o755)
    return path


def make_shim(path: Path) -> Path:
    """As pyenv's for a version that is installed, but not chosen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
    path.chmod(0o755)
    return path


def make_uv(directory: Path, downloads: bool) -> Path:
    """A uv that has no Python, and fetches 3.11 if it can."""
    fetched = directory / "fetched" / "python3.11"
    fetch = f"mkdir -p {fetched.parent}; cp {make_python(directory / 'store' / 'python', '3.11')} {fetched}"
    failure = "echo 'error: Failed to install\n  cause: no network' >&2; exit 1"
    uv = directory / "uv"
    uv.write_text(
        f"""#!/bin/sh
case "$2" in
install) {fetch if downloads else failure} ;;
find) [ "$4" = 3.11 ] && [ -e {fetched} ] && echo {fetched} ;;
esac
"""
    )
    uv.chmod(0o755)
    return fetched


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is searched for Pythons after one with shims, besides the system's programs of other names."""
    for name in ("python3.11", "python3.12", "python3.13"):
        make_shim(tmp_path / "shims" / name)
    for name in ("sh", "mkdir", "cp"):
        program = shutil.which(name)
        assert program is not None
        (tmp_path / "shims" / name).symlink_to(program)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}{os.pathsep}{tmp_path / 'bin'}")
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("environment", "running", "others", "expected"),
    [
        ("train", "3.11", ["3.12"], "running"),
        ("train", "3.12", ["3.11"], "running"),  # Ubuntu 24.04's
        ("train", "3.13", ["3.12"], "python3.12"),
        ("train", "3.8", ["3.12", "3.11"], "python3.11"),
        ("generate", "3.10", ["3.12", "3.13"], "python3.12"),
        ("launcher", "3.13", ["3.11"], "running"),  # Debian 13's
        ("launcher", "3.14", ["3.13"], "python3.13"),
    ],
)
def test_the_running_python_is_taken_if_it_fits_else_one_on_the_path(
    path: Path, environment: str, running: str, others: list[str], expected: str
) -> None:
    start = make_python(path / "running", running)
    for version in others:
        make_python(path / f"python{version}", version)
    assert interpreters.find_interpreter(environment, str(start)) == str(path / expected)


def test_a_program_that_lies_by_its_name_is_not_taken(path: Path) -> None:
    start = make_python(path / "running", "3.13")
    make_python(path / "python3.11", "3.9")
    make_python(path / "python3.12", "3.12")
    assert interpreters.find_interpreter("train", str(start)) == str(path / "python3.12")


def test_without_ensurepip_another_python_is_taken_or_the_package_is_named(path: Path) -> None:
    """Ubuntu 24.04 without python3.12-venv."""
    start = make_python(path / "python3.12", "3.12", ensurepip=False)
    with pytest.raises(EnvironmentMismatch) as raised:
        interpreters.find_interpreter("train", str(start))
    assert str(raised.value).startswith(f"python3.12 = {start}: ")
    assert "`apt install python3.12-venv`" in str(raised.value)
    other = make_python(path / "python3.11", "3.11")
    assert interpreters.find_interpreter("train", str(start)) == str(other)


def test_where_there_is_none_uv_fetches_one_and_next_time_finds_it(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debian 13 with uv."""
    start = make_python(path / "running", "3.13")
    fetched = make_uv(path, downloads=True)
    assert interpreters.find_interpreter("train", str(start)) == str(fetched)
    assert "fetch Python 3.11" in capsys.readouterr().out
    assert interpreters.find_interpreter("train", str(start)) == str(fetched)
    assert capsys.readouterr().out == ""


def test_a_uv_that_cannot_fetch_is_quoted(path: Path) -> None:
    start = make_python(path / "running", "3.13")
    make_uv(path, downloads=False)
    with pytest.raises(EnvironmentMismatch, match=r"^Python = .*3\.11 or 3\.12; .*failed \(cause: no network\)$"):
        interpreters.find_interpreter("train", str(start))


@pytest.mark.parametrize(("environment", "wanted"), [("train", "3.11 or 3.12;"), ("launcher", "3.11, 3.12 or 3.13;")])
def test_neither_python_nor_uv_is_one_line(path: Path, environment: str, wanted: str) -> None:
    with pytest.raises(EnvironmentMismatch) as raised:
        interpreters.find_interpreter(environment, str(make_python(path / "running", "3.10")))
    assert wanted in str(raised.value) and "uv" in str(raised.value) and "\n" not in str(raised.value)


def test_a_refusal_writes_nothing(repository: Path, path: Path) -> None:
    """The whole tool, in a real Python that does not fit: one that says that it is 3.14."""
    customize = repository / "customize"
    customize.mkdir()
    (customize / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 14, 0, 'final', 0)\n")
    before = sorted(repository.rglob("*"))
    refused = set_up(repository, PYTHONPATH=str(customize), PYTHONDONTWRITEBYTECODE="1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Python = 3.14.0: ") and refused.stderr.count("\n") == 1
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize(("version", "current"), [("3.11.7", True), ("3.12.1", True), ("3.10.4", False)])
def test_an_environment_stays_current_with_any_supported_python(repository: Path, version: str, current: bool) -> None:
    environment = install.Environment("train", repository / "containers" / "locks" / "train.txt", repository)
    environment.python.parent.mkdir(parents=True)
    environment.python.touch()
    (environment.directory / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}\n")
    environment.stamp.write_text(environment.fingerprint())
    assert environment.is_current() == current


# Which machine.


@pytest.mark.parametrize(
    ("system", "architecture", "glibc", "start"),
    [
        ("Darwin", "arm64", None, "system = Darwin: Linux is needed"),
        ("Windows", "AMD64", None, "system = Windows: Linux is needed; take a Linux machine or WSL 2"),
        ("Linux", "ppc64le", (2, 39), "processor = ppc64le: "),
        ("Linux", "armv7l", (2, 36), "processor = armv7l: "),
        ("Linux", "x86_64", None, "glibc = (another C library): "),  # Alpine
        ("Linux", "x86_64", (2, 28), "glibc = 2.28: the packages need glibc 2.31 or newer"),  # RHEL 8
        ("Linux", "aarch64", (2, 17), "glibc = 2.17: "),
    ],
)
def test_other_systems_are_refused(system: str, architecture: str, glibc: tuple[int, int] | None, start: str) -> None:
    with pytest.raises(EnvironmentMismatch) as raised:
        machine.check_platform(["train", "generate"], system, architecture, glibc)
    assert str(raised.value).startswith(start) and "\n" not in str(raised.value)


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_linux_with_a_recent_glibc_is_accepted(architecture: str) -> None:
    for glibc in ((2, 31), (2, 39), (3, 0)):
        machine.check_platform(["train", "generate"], "Linux", architecture, glibc)
    # A login node with RHEL 8.
    machine.check_platform(["launcher"], "Linux", architecture, (2, 28))


def test_memory_is_for_those_who_run_here() -> None:
    machine.check_memory(["train"], round(7.6 * 2**30))  # sold as 8 GB
    machine.check_memory(["launcher"], 2**30)
    with pytest.raises(EnvironmentMismatch, match=r"^memory = 3\.8 GiB: the smallest run needs 7 GiB; "):
        machine.check_memory(["launcher", "train"], round(3.8 * 2**30))


def test_disk_holds_what_is_new_and_one_download(tmp_path: Path) -> None:
    both = ["train", "generate"]
    machine.check_disk(both, both, round(16.3 * 2**30), tmp_path)  # 6.6 + 6.6 + 3.0
    with pytest.raises(EnvironmentMismatch) as raised:
        machine.check_disk(both, both, round(16.1 * 2**30), tmp_path)
    assert str(raised.value).startswith(f"free space in {tmp_path} = 16.1 GiB: the environments need 16.2 GiB")
    machine.check_disk(both, ["generate"], round(9.7 * 2**30), tmp_path)  # the other makes room for itself
    machine.check_disk(["launcher"], ["launcher"], 2**29, tmp_path)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [([], 16), (["max"], 16), (["4294967296"], 4), (["9223372036854771712"], 16), (["max", "2147483648"], 2)],
)
def test_a_container_s_memory_is_its_limit(tmp_path: Path, limits: list[str], expected: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\nMemFree:         1024 kB\n")
    for number, limit in enumerate(limits):
        (tmp_path / str(number)).write_text(limit + "\n")
    files = [tmp_path / str(number) for number in range(3)]
    assert machine.memory_bytes(tmp_path / "meminfo", files) == expected * 2**30


def test_this_machine_s_glibc_is_known() -> None:
    version = machine.glibc_version()
    assert version is not None and (2, 17) < version < (3, 0)


def test_a_machine_that_cannot_is_told_before_a_python_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(command, "find_interpreter", lambda name: pytest.fail("looked for a Python"))
    monkeypatch.setattr(sys, "argv", ["setup_environments.py"])
    assert command.main(None) == 2
    message = capsys.readouterr().err
    assert message.startswith("system = Darwin: ") and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tools/setup_environments.py", "launcher_scripts/main.py"])
def test_the_files_that_old_pythons_start_have_no_newer_syntax(name: str) -> None:
    """Python 3.6's grammar, and no import from the future that it does not know."""
    tree = ast.parse((ROOT / name).read_text(), feature_version=(3, 6))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]


def test_the_set_up_has_the_syntax_of_python_3_8() -> None:
    for path in (ROOT / "tools" / "environments").glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


def test_without_flock_one_sets_up_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    seen = []

    def note(environment: install.Environment, interpreter: str) -> None:
        seen.append((environment.name, (tmp_path / ".venv" / "setup.lock.owner").exists()))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "set_up", note)
    command.install([install.Environment("launcher", install.lock_file("launcher", "cpu"), tmp_path)])
    assert seen == [("launcher", True)] and not (tmp_path / ".venv" / "setup.lock.owner").exists()
