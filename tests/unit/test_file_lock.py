"""One lock for all, where the file system has flock and where it has not."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sami_nemo.file_lock import NO_FLOCK, LockHeld, Owner, held, holder, owner_file
from tests.unit.no_flock import ROOT, without_flock
from tests.unit.toy_run import PATIENCE, wait_for

# Holds the lock argv[1] until it is told otherwise, and says what came of it.
HOLD = """
import signal, sys, time
from pathlib import Path
from sami_nemo.file_lock import LockHeld, held
# Where the tests themselves run in the background of a shell, it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with held(Path(sys.argv[1]), wait=sys.argv[2] == "wait"):
        print("has it", flush=True)
        if sys.argv[3] == "raise":
            raise ValueError
        time.sleep(float(sys.argv[3]))
except LockHeld as other:
    print("refused:", other, flush=True)
"""
# Adds one to the number in argv[2], fifty times, so slowly that another's is lost if both are at it.
COUNT = """
import sys, time
from pathlib import Path
from sami_nemo.file_lock import held
lock, number = map(Path, sys.argv[1:])
for _ in range(50):
    with held(lock):
        value = int(number.read_text())
        time.sleep(0.001)
        number.write_text(str(value + 1))
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture(params=["flock", "no flock"])
def variables(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT)} if request.param == "flock" else without_flock(tmp_path)


def start(variables: dict[str, str], program: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def holding(variables: dict[str, str], lock: Path, how: str = "600") -> subprocess.Popen[str]:
    process = start(variables, HOLD, lock, "wait", how)
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    return process


def refuse_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def write_owner(lock: Path, **changes: object) -> None:
    """As a process that is gone has left it."""
    fields: dict[str, object] = {
        "host": socket.gethostname(),
        "process": 4_000_000,
        "started": "1",
        "since": "2026-01-02T03:04:05+0000",
    }
    fields["namespace"] = Path("/proc/self/ns/pid").stat().st_ino
    owner_file(lock).write_text(json.dumps(fields | changes))


@pytest.mark.parametrize("number", sorted(NO_FLOCK))
def test_without_flock_a_file_names_the_owner(number: int, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_flock(monkeypatch, number)
    with held(lock, wait=False):
        owner = holder(lock)
        assert owner is not None and (owner.host, owner.process) == (socket.gethostname(), os.getpid())
        with pytest.raises(LockHeld, match=f"process {os.getpid()} on .* since 20"), held(lock, wait=False):
            pass
    assert holder(lock) is None and not owner_file(lock).exists()


@pytest.mark.parametrize("number", [errno.EBADF, errno.EIO, errno.EPERM, errno.EINTR])
def test_any_other_error_is_no_reason_to_do_without(number: int, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_flock(monkeypatch, number)
    with pytest.raises(OSError) as raised, held(lock):
        pass
    assert raised.value.errno == number and not owner_file(lock).exists()


def test_with_flock_there_is_no_such_file(lock: Path) -> None:
    with held(lock, wait=False):
        assert not owner_file(lock).exists()
        owner = holder(lock)
        assert owner is not None and owner.process == os.getpid()
        with pytest.raises(LockHeld), held(lock, wait=False):
            pass
    assert holder(lock) is None


def test_processes_exclude_one_another(variables: dict[str, str], lock: Path, tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    write_owner(lock)
    processes = [start(variables, COUNT, lock, tmp_path / "number") for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    assert (tmp_path / "number").read_text() == "150"


def test_one_of_several_takes_over_what_a_killed_process_left(variables: dict[str, str], lock: Path) -> None:
    first = holding(variables, lock)
    first.kill()
    first.communicate()
    others = [start(variables, HOLD, lock, "at once", "600") for _ in range(4)]
    said = sorted(process.stdout.readline() for process in others if process.stdout is not None)
    for process in others:
        process.kill()
        process.communicate()
    assert said[0] == "has it\n" and all(line.startswith("refused: process ") for line in said[1:])


def test_a_killed_process_that_nobody_asks_after_holds_nothing(variables: dict[str, str], lock: Path) -> None:
    """A zombie, as containers keep them whose first process does not look after its children."""
    first = holding(variables, lock)
    first.kill()
    wait_for(lambda: "Z" in Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2])
    assert start(variables, HOLD, lock, "at once", "0").communicate(timeout=PATIENCE)[0] == "has it\n"
    first.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_released_by_a_signal_that_ends_the_process(number: int, lock: Path, tmp_path: Path) -> None:
    process = holding(without_flock(tmp_path), lock)
    assert owner_file(lock).exists()
    process.send_signal(number)
    try:
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == -number
    assert not owner_file(lock).exists()


def test_released_after_an_error(variables: dict[str, str], lock: Path) -> None:
    process = start(variables, HOLD, lock, "wait", "raise")
    assert "ValueError" in process.communicate(timeout=PATIENCE)[1]
    assert not owner_file(lock).exists() and holder(lock) is None


def test_who_waits_is_told_for_whom_and_goes_on(lock: Path, tmp_path: Path) -> None:
    variables = without_flock(tmp_path)
    first = holding(variables, lock, "2")
    second = start(variables, HOLD, lock, "wait", "0")
    output, errors = second.communicate(timeout=PATIENCE)
    assert output == "has it\n"
    assert errors.startswith(f"waits for process {first.pid} on ") and errors.count("\n") == 1
    first.communicate()


def test_a_number_that_another_process_has_now_is_not_the_owner(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_flock(monkeypatch, errno.ENOSYS)
    write_owner(lock, process=os.getpid())
    assert holder(lock) is None
    with held(lock, wait=False):
        assert holder(lock) is not None


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"namespace": 7}], ids=["host", "container"])
def test_another_host_s_is_left_alone_and_named(
    elsewhere: dict[str, object], lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_flock(monkeypatch, errno.ENOSYS)
    write_owner(lock, **elsewhere)
    host = elsewhere.get("host", socket.gethostname())
    before = owner_file(lock).read_text()
    with pytest.raises(LockHeld) as refused, held(lock, wait=False):
        pass
    expected = f"process 4000000 on {host} since 2026-01-02T03:04:05+0000; if it is gone, remove "
    assert str(refused.value) == expected + str(owner_file(lock))
    assert owner_file(lock).read_text() == before
    owner = holder(lock)
    assert owner is not None and (owner.host, owner.process) == (host, 4_000_000)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "elsewhere"}', '{"host": "a", "process": -1}', "\xff"])
def test_a_file_that_names_nobody_is_left_alone(text: str, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_flock(monkeypatch, errno.ENOLCK)
    owner_file(lock).write_bytes(text.encode("latin-1"))
    expected = f"a process without a name; if it is gone, remove {owner_file(lock)}$"
    with pytest.raises(LockHeld, match=expected), held(lock, wait=False):
        pass
    assert holder(lock) is None


def test_what_others_have_made_since_is_not_removed(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who removes the file of a process that lives has two; the first to end leaves the other's."""
    refuse_flock(monkeypatch, errno.ENOSYS)
    with held(lock, wait=False):
        owner_file(lock).unlink()
        write_owner(lock, host="elsewhere")
    assert owner_file(lock).exists()


def test_an_earlier_version_s_launcher_is_seen(lock: Path) -> None:
    with lock.open("w") as file:
        file.write('{"host": "here", "process": 7}')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(lock) == Owner("here", 7)
    assert holder(lock) is None
