"""Images, locks and the start-up check name the same versions, and nothing secret gets into an image."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch.utils import cpp_extension

import sami_nemo
from sami_nemo.launch.stages import PYTHON_VARIABLES
from sami_nemo.versions import CHECKED, LOCKS, NVIDIA_BUILD, read_lock

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
BUILD = CONTAINERS / "build.sh"
DOCKERFILES = sorted(CONTAINERS.glob("*.Dockerfile"))
VERSION = re.compile(r"\d+\.\d+")


def versions() -> dict[str, str]:
    lines = (CONTAINERS / "versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("requirements", CONTAINERS / "requirements.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def build(*words: str, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables | ({"PATH": path} if path else {})
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, str(BUILD), *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_vllm_is_the_lock_s() -> None:
    _, _, tag = versions()["GENERATE_BASE"].rpartition(":")
    assert tag == "v" + read_lock(LOCKS / "generate-gpu.txt")["vllm"]


def test_the_readme_names_images_by_the_product_s_version() -> None:
    named = re.findall(r"sami-nemo-\w+[-:](\d+\.\d+\.\d+)", (CONTAINERS / "README.md").read_text())
    assert named and set(named) == {sami_nemo.__version__}


def test_no_version_is_written_twice() -> None:
    assert [path.name for path in DOCKERFILES] == ["generate.Dockerfile", "train.Dockerfile"]
    for path in [*DOCKERFILES, BUILD, CONTAINERS / "requirements.py"]:
        code = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not [line for line in code if VERSION.search(line)], path


def test_the_training_image_is_the_lock_without_what_nvidia_brings(tool: ModuleType) -> None:
    lock = read_lock(LOCKS / "train.txt")
    lines = tool.requirements("train")
    installed = dict(line.split("==") for line in lines)
    assert lock.items() - installed.items() == {(name, lock[name]) for name in tool.NVIDIA_BRINGS & lock.keys()}
    assert installed.items() <= lock.items()
    # What every stage checks when it starts, except for the base's torch.
    assert {name for name in CHECKED["train.txt"] if name not in installed} == {"torch"}
    # NVIDIA's packages that are not of its container.
    assert {"nvidia-modelopt", "nvidia-resiliency-ext"} <= installed.keys()


def test_the_start_up_check_takes_the_base_s_torch() -> None:
    """As NVIDIA names its builds: by release, and that is the tag's."""
    release = re.search(r":(\d\d\.\d\d)-py3$", versions()["TRAIN_BASE"])
    assert release is not None
    assert NVIDIA_BUILD.search(f"2.10.0a0+b558c986e8.nv{release[1]}")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_build_checks_the_interpreters_that_stages_use(path: Path) -> None:
    """Slurm's jobs run python3 from the path of the image, a launcher inside it what the variable names."""
    variable = PYTHON_VARIABLES[path.stem]
    text = path.read_text()
    assert re.search(rf"^ENV {variable}=/", text, flags=re.MULTILINE)
    for interpreter in ("python3", f'"${variable}"'):
        assert f"&& PYTHONPATH=/opt/sami-nemo {interpreter} -m sami_nemo.versions {path.stem} " in text


def test_megatron_imports_where_no_gpu_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a build: torch takes the GPUs to compile for from the image, in words that it knows."""
    default = re.search(r'TORCH_CUDA_ARCH_LIST="\$\{TORCH_CUDA_ARCH_LIST:-(.*)\}"', DOCKERFILES[1].read_text())
    assert default is not None
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", default[1])
    flags = " ".join(cpp_extension._get_cuda_arch_flags())
    assert "sm_80" in flags and "sm_90" in flags
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    with pytest.raises(IndexError):
        cpp_extension._get_cuda_arch_flags()


def test_megatron_imports_on_a_cpu_beside_cuda_s_compiler() -> None:
    """The package answers torch's question where no GPU can; what the user says, stays."""
    code = "import os, sami_nemo; print(os.environ.get('TORCH_CUDA_ARCH_LIST'))"
    # Beside GPUs it would keep vLLM from compiling for them.
    unsaid = "None" if Path("/dev/nvidiactl").exists() else "8.0;9.0"
    variables = {name: value for name, value in os.environ.items() if name != "TORCH_CUDA_ARCH_LIST"}
    for given, expected in (({}, unsaid), ({"TORCH_CUDA_ARCH_LIST": "Ampere"}, "Ampere")):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=variables | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_the_generation_image_adds_what_its_stages_import(tool: ModuleType, generate_python: Path) -> None:
    lock = read_lock(LOCKS / "generate-gpu.txt")
    assert dict(line.split("==") for line in tool.requirements("generate")).items() <= lock.items()
    modules = "sami_nemo.generate.sample, sami_nemo.generate.merge, sami_nemo.writer, "
    modules += "sami_nemo.evaluate.judge, sami_nemo.launch.slurm.job, openai, transformers"
    code = f"import {modules}, sys; print(*sorted(m.partition('.')[0] for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [str(generate_python), "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    # Names of modules differ from those of packages: PyYAML is yaml.
    imported = set(done.stdout.split()) | {"pyyaml" if "yaml" in done.stdout.split() else ""}
    assert set(tool.GENERATE_NEEDS) <= imported


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_nothing_secret_gets_in(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^ARG (.*)$", text, flags=re.MULTILINE) == ["BASE"]
    assert not re.search(r"(?i)(key|token|password|secret|credential)", text)
    copied = [line.split()[1] for line in text.splitlines() if line.startswith("COPY")]
    assert copied == ["containers/", "sami_nemo/"]
    # Everything is left out but what is copied.
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == {"containers", "sami_nemo"}
    for private in (".env", ".git", "runs", "models", ".venv", "data"):
        assert any(fnmatch.fnmatch(private, rule) for rule in rules if not rule.startswith("!"))
        assert not any(fnmatch.fnmatch(private, rule[1:]) for rule in rules if rule.startswith("!"))


def test_build_commands() -> None:
    done = build("--dry-run", "--push", "registry.example/team", "--enroot", "/shared/my images")
    assert (done.returncode, done.stderr) == (0, "")
    tag = f"sami-nemo-train:{sami_nemo.__version__}"
    squashed = f"/shared/my\\ images/sami-nemo-train-{sami_nemo.__version__}.sqsh"
    assert [line.strip() for line in done.stdout.splitlines()[:5]] == [
        f"docker build --build-arg BASE={versions()['TRAIN_BASE']} --file containers/train.Dockerfile --tag {tag} .",
        f"docker tag {tag} registry.example/team/{tag}",
        f"docker push registry.example/team/{tag}",
        f"rm -f {squashed}",
        f"enroot import --output {squashed} dockerd://{tag}",
    ]
    assert versions()["GENERATE_BASE"] in done.stdout
    only = build("generate", "--dry-run", CONTAINER_ENGINE="podman")
    assert only.stdout.startswith("podman build ") and only.stdout.count("\n") == 1


def test_what_build_is_given_is_what_it_runs(tmp_path: Path) -> None:
    """Against programs that write down how they were called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("podman", "enroot"):
        (tools / name).write_text(f"#!/bin/sh\necho {name} \"$1\" >> '{tmp_path}/calls'\n")
        (tools / name).chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = build("train", "--enroot", str(tmp_path), path=path, CONTAINER_ENGINE="podman")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["podman build", "enroot import"]


@pytest.mark.parametrize(
    ("words", "variables", "start"),
    [
        (["everything"], {}, "argument = everything: no such option"),
        ([], {"CONTAINER_ENGINE": "rkt"}, "CONTAINER_ENGINE = rkt: set docker or podman"),
        ([], {"CONTAINER_ENGINE": "podman"}, "podman = (not installed)"),
        (["--enroot", "."], {}, "enroot = (not installed)"),
        # Without its value, an option must not take the next one for it: that would build instead of printing.
        (["--push"], {}, "--push = (missing): give a registry"),
        (["--push", "--dry-run"], {}, "--push = (missing): give a registry"),
        (["--enroot", "--dry-run", "train"], {}, "--enroot = (missing): give a directory"),
    ],
)
def test_mistakes_are_one_line(words: list[str], variables: dict[str, str], start: str, tmp_path: Path) -> None:
    for program in ("dirname", "sed"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / program).symlink_to(found)
    (tmp_path / "docker").write_text("#!/bin/sh\necho built\n")
    (tmp_path / "docker").chmod(0o755)
    done = build(*words, path=str(tmp_path), **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(start) and done.stderr.count("\n") == 1


def test_a_missing_directory_is_named_before_anything_is_built(tmp_path: Path) -> None:
    for name in ("docker", "enroot"):
        (tmp_path / name).write_text("#!/bin/sh\necho built\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = build("--enroot", str(tmp_path / "none"), path=path, CONTAINER_ENGINE="docker")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"--enroot = {tmp_path}/none: no such directory; make it first\n"


def test_the_shell_s_linter_is_content() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck")
    for script in (BUILD, ROOT / ".ci" / "run"):
        done = subprocess.run(["shellcheck", "-x", str(script)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")
