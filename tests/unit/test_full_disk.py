"""Disks that are full, over quota or read-only: one line with the path, exit status 2, and nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.config.files import dump_config
from sami_nemo.errors import DISK_REFUSES, StorageError, storage_error
from sami_nemo.launch.claim import open_run
from sami_nemo.launch.slurm import job
from sami_nemo.progress import EVENTS_VARIABLE, report, report_error
from sami_nemo.run_dir import RunDir, partial, write_bytes, write_json, write_jsonl, write_text
from tests.unit.toy_run import PATIENCE, ROOT, Toy

MAIN = ROOT / "launcher_scripts" / "main.py"
REMEDY = "free space or make it writable, or set runs_dir= to another disk; the same command goes on from here"
# argv: a directory, a file to take what is in it at the end, and a command that sees a small file system there.
ON_SMALL_DISK = """
mount -t tmpfs -o size="$SIZE" tmpfs "$1" || exit 99
cd "$1"; place=$1; list=$2; shift 2
[ -z "$FILL" ] || head -c "$SIZE" /dev/zero > filling 2> /dev/null
[ -z "$READ_ONLY" ] || mount -o remount,ro "$place"
"$@"
status=$?
find . > "$list"
exit "$status"
"""
STAGE = """
from sami_nemo import stage_entry
from sami_nemo.run_dir import write_text
def main(config, run, iteration):
    if config.name == "prints":
        for _ in range(10_000):
            print("word " * 20)
    if config.name == "library":
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    write_text(run.root / "output", "x" * 1_000_000)
stage_entry.run(main, "train")
"""


def on_small_disk(
    place: Path, *command: object, size: str = "128k", fill: bool = False, read_only: bool = False, **variables: str
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a command that sees an empty disk of that size at `place`; also the paths that are there at the end."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    listing = place.with_name(place.name + ".list")
    settings = {"SIZE": size, "FILL": "1" if fill else "", "READ_ONLY": "1" if read_only else ""}
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", ON_SMALL_DISK, "sh", str(place), str(listing), *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | settings | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if not listing.exists():
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    return done, set(listing.read_text().split())


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.mark.parametrize("number", DISK_REFUSES)
@pytest.mark.parametrize("where", ["fsync", "replace", "open", "mkdir"])
def test_a_refused_write_is_one_line_and_leaves_nothing(
    number: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "place" / "file"
    path.parent.mkdir()
    path.write_text("before")

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    owner, name = (os, "fsync") if where == "fsync" else (Path, where)
    with monkeypatch.context() as patch, pytest.raises(StorageError) as refused:
        patch.setattr(owner, name, refuse)
        write_text(path, "after")
    assert str(refused.value) == f"{path} = ({os.strerror(number)}): {REMEDY}"
    assert path.read_text() == "before" and not partial(path).exists()


@pytest.mark.parametrize("write", [write_text, write_bytes, write_json, write_jsonl])
def test_a_disk_that_is_full_in_the_middle(write: object, disk: Path) -> None:
    content = {"write_text": "'x' * 10**6", "write_bytes": "bytes(10**6)", "write_json": "list(range(10**5))"}
    name = write.__name__  # type: ignore[attr-defined]
    program = f"""
from pathlib import Path
from sami_nemo.errors import StorageError
from sami_nemo.run_dir import {name}
try:
    {name}(Path("file"), {content.get(name, "({'n': n} for n in range(10**5))")})
except StorageError as error:
    print(error)
"""
    done, left = on_small_disk(disk, sys.executable, "-c", program)
    assert (done.stdout, done.stderr) == (f"file = (No space left on device): {REMEDY}\n", "")
    assert left == {"."}


def test_another_error_stays_one_and_leaves_nothing_either(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_jsonl(tmp_path / "file", ({"n": 1 // n} for n in (1, 0)))
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "file", "text")
    assert list(tmp_path.rglob("*")) == [tmp_path / "file"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "", "/a"), "/a = (No space left on device): "),
        (OSError(errno.EDQUOT, ""), "/run = (Disk quota exceeded): "),
        (OSError(errno.EROFS, "", "/a"), "/a = (Read-only file system): "),
        (OSError(errno.EFBIG, ""), "/run = (File too large): "),
        (
            RuntimeError("rank 1:\n I/O error: Disk quota exceeded (os error 122)\n…"),
            "/run = (I/O error: Disk quota exceeded (os ",
        ),
        (OSError(errno.EIO, "", "/a"), None),
        (FileNotFoundError(errno.ENOENT, "", "/a"), None),
        (ValueError("full"), None),
    ],
)
def test_which_errors_are_the_disk_s(error: Exception, line: str | None) -> None:
    found = storage_error(error, "/run")
    assert found is None if line is None else str(found).startswith(line)


def test_progress_that_finds_no_room_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EVENTS_VARIABLE, "/dev/full")
    report(1, 2, "steps")
    report_error("x = y: mend it")


@pytest.mark.parametrize("read_only", [False, True], ids=["full", "read-only"])
def test_a_disk_that_takes_nothing_is_seen_before_the_run(read_only: bool, disk: Path, tmp_path: Path) -> None:
    words = (sys.executable, MAIN, "recipe=sami_debug", f"runs_dir={disk}/runs", f"model.path={tmp_path}/m")
    done, left = on_small_disk(disk, *words, fill=not read_only, read_only=read_only)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and f"runs_dir = {disk}/runs" in done.stderr
    assert left == {".", "./filling"} or read_only


@pytest.mark.parametrize("files", [2, 3, 5, 8, 9, 13])
def test_a_disk_that_takes_no_more_files_stops_the_run(files: int, disk: Path, tmp_path: Path) -> None:
    """There is space, as on a disk over quota, so that only a write can tell: one of the launcher's, or of a stage's."""
    words = (sys.executable, MAIN, "recipe=sami_debug", f"runs_dir={disk}/runs", f"model.path={tmp_path}/m")
    # The directory itself is a file, too.
    done, left = on_small_disk(disk, *words, size=f"4g,nr_inodes={files + 1}")
    *before, line = done.stderr.splitlines()
    assert line.startswith(f"{disk}/runs") and line.endswith(f" = (No space left on device): {REMEDY}")
    # A stage that finds no room to tell the launcher why it failed has its log shown.
    assert done.returncode == (1 if before else 2) and "Traceback" not in done.stderr
    assert not before or before[-1].startswith("stage principles failed with exit status 2; ")
    assert not any(path.endswith((".yaml.partial", ".attempt.json.partial")) for path in left), left


@pytest.mark.parametrize("name", ["prints", "library", "writes"])
@pytest.mark.parametrize("told", [True, False], ids=["events elsewhere", "nothing can be told"])
def test_a_stage_ends_with_one_line(name: str, told: bool, disk: Path) -> None:
    (disk.parent / "stage.py").write_text(STAGE)
    config = compose(["recipe=sami_debug", "runs_dir=.", f"name={name}"])
    (disk.parent / "config.yaml").write_text(dump_config(config))
    events = disk.parent / "events.jsonl" if told else Path("/dev/full")
    output = ("/dev/full", "/dev/full") if not told else (disk / "log", disk.parent / "stderr")
    command = f"cp ../config.yaml . && {sys.executable} ../stage.py --run-dir . > {output[0]} 2> {output[1]}"
    done, left = on_small_disk(disk, "sh", "-c", command, **{EVENTS_VARIABLE: str(events)})
    assert done.returncode == 2 and not any(path.endswith(".partial") for path in left)
    if told:
        line = (disk.parent / "stderr").read_text()
        assert line.count("\n") == 1 and "No space left on device" in line and REMEDY in line
        assert line.startswith("output = " if name == "writes" else ". = ")
        assert REMEDY in events.read_text().splitlines()[-1]


@pytest.mark.parametrize("words", [("dry_run=true",), ("--help",)], ids=["much", "little"])
def test_output_that_nobody_takes(words: tuple[str, ...], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(MAIN), *words],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"/dev/full = (No space left on device): {REMEDY}\n"


def test_a_run_whose_console_log_is_full_stops_its_stages(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    with open("/dev/full", "w") as full:
        words = [sys.executable, toy.launcher_file, toy.runs, toy.control, toy.stage_file]
        done = subprocess.run(
            [str(word) for word in words], env=os.environ | toy.variables,
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode != 0 and not (toy.root / "one").exists()
    assert toy.launch()[0] == 0


def test_a_stage_that_fills_the_disk_is_told_with_the_disk(disk: Path) -> None:
    toy = Toy(disk.parent)
    toy.tell("second", "fill")
    words = (sys.executable, toy.launcher_file, disk / "runs", toy.control, toy.stage_file)
    done, left = on_small_disk(disk, *words)
    assert done.returncode == 3, done.stderr
    assert "StageFailed" in done.stdout and "second failed with exit status 1" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(f"second.failure.json = (No space left on device): {REMEDY}")
    assert done.stderr == "" and "./runs/toy/manifests/first.json" in left
    assert not any(path.endswith(".json.partial") for path in left)


def test_a_job_whose_disk_is_full_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path}", "cluster=slurm"])
    with open_run(config):
        pass

    def refuse(*arguments: object) -> NoReturn:
        raise OSError(errno.EDQUOT, "")

    monkeypatch.setattr(os, "fsync", refuse)
    for words in (["begin"], ["end", "--status", "1"]):
        monkeypatch.setattr(sys, "argv", ["job", *words, "--run-dir", str(config.run_dir), "--stage", "principles"])
        assert job.main() == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and "(Disk quota exceeded): free space" in printed.err
        assert "failed with exit status 1" in printed.out or words == ["begin"]
    assert not list(RunDir(config.run_dir).root.rglob("*.partial"))
