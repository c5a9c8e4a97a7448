"""A lock that one process holds at a time, also among those of several machines that share a file system.

flock does it, and ends with its process. Some file systems refuse it: Lustre mounted without it, NFS without its lock
service, some of FUSE. There a second file, made exclusively, names its owner until it is removed. What a killed owner
leaves is taken over on the same host, which can see that the owner is gone; no other host can.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# What a file system without flock answers. Anything else, a lock that is taken above all, is no reason to do without.
NO_FLOCK = frozenset((errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL))
# Of who waits for an owner's file to go. Locks are held for seconds to hours.
POLL_SECONDS = 0.2
# Until another process of this host has looked at an owner's file, which takes milliseconds.
TURN_SECONDS = 0.01
# For a name that its owner writes just after it has taken the lock: half a second.
LOOKS = 50


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock."""

    host: str
    process: int
    started: str = ""
    """When the process was, in clock ticks since the host was: its number may have been given to another since."""
    since: str = ""
    """When it took the lock, for people."""
    namespace: int = 0
    """Of its number: containers of one host may count their processes apart. 0 is what an earlier version leaves."""

    def visible(self) -> bool:
        """Whether this process can see whether it has ended."""
        return self.host == socket.gethostname() and self.namespace in (0, _namespace())

    def gone(self) -> bool:
        """Whether it has ended, for all that can be seen from here."""
        return self.visible() and not _runs(self.process, self.started)


class LockHeld(Exception):
    """Another process has the lock.

    Args:
        owner: None if its name cannot be read, because it is just being written, or its writer was killed.
        file: to be removed if the owner is gone without our seeing it; None if the lock ends with its owner.
    """

    def __init__(self, owner: Owner | None, file: Path | None) -> None:
        self.owner = owner
        self.file = file
        who = f"process {owner.process} on {owner.host} since {owner.since}" if owner else "a process without a name"
        super().__init__(f"{who}; if it is gone, remove {file}" if file else who)


@contextlib.contextmanager
def held(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock `path`, a file that is made if it is not there and stays. Its directory exists.

    Args:
        wait: until the lock is free.

    Raises:
        LockHeld: another process has it, and we do not wait.
        OSError: the file cannot be made or written.
    """
    owner = _this_process()
    with path.open("a+", encoding="utf-8") as file:
        try:
            works = _flock(file.fileno(), wait)
        except BlockingIOError:
            raise LockHeld(_owner_by(path), None) from None
        if works:
            file.truncate(0)
            file.write(_text(owner))
            file.flush()
            yield
            return
    with _held_by_file(owner_file(path), owner, wait):
        yield


def holder(path: Path) -> Owner | None:
    """Who holds the lock `path` now; None if nobody does, or it cannot be known."""
    with contextlib.suppress(OSError), path.open("r+", encoding="utf-8") as file:
        try:
            if _flock(file.fileno(), wait=False):
                return None
        except BlockingIOError:
            return _owner_by(path)
        owner = _parse(_read(owner_file(path)))
        return None if owner is None or owner.gone() else owner
    return None


def owner_file(path: Path) -> Path:
    """What stands for the lock `path` where there is no flock."""
    return path.with_name(path.name + ".owner")


def _flock(descriptor: int, wait: bool) -> bool:
    """Take the lock; false if the file system has none.

    Raises:
        BlockingIOError: another process has it, and we do not wait.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in NO_FLOCK:
            return False
        raise
    return True


@contextlib.contextmanager
def _held_by_file(file: Path, owner: Owner, wait: bool) -> Iterator[None]:
    told = False
    while (other := _take(file, owner)) is not None:
        if not wait:
            raise other
        if not told:
            print(f"waits for {other}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    try:
        with _released_when_ended(file, owner):
            yield
    finally:
        _release(file, owner)


def _take(file: Path, owner: Owner) -> LockHeld | None:
    """Make `file` in the name of `owner`; otherwise, who has it."""
    with _turn_of_this_host(file):
        while True:
            found = _read(file)
            if found is None:
                with contextlib.suppress(FileExistsError):
                    _make(file, owner)
                    return None
                # Another host's, made just now; NFS may show it late.
                time.sleep(TURN_SECONDS)
                continue
            other = _parse(found)
            if other is None or not other.gone():
                return LockHeld(other, None if other is not None and other.visible() else file)
            # It is gone, and nobody else removes its file while it is our turn: the same text is the same file.
            if _read(file) == found:
                file.unlink()


def _make(file: Path, owner: Owner) -> None:
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as made:
            made.write(_text(owner))
            made.flush()
            os.fsync(made.fileno())
    except OSError:
        file.unlink()
        raise


def _release(file: Path, owner: Owner) -> None:
    # Unless somebody removed it by hand, and another process has made its own.
    if _parse(_read(file)) == owner:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _turn_of_this_host(file: Path) -> Iterator[None]:
    """One process of this host at a time. An abstract socket needs no file system and ends with its process."""
    name = b"\0sami-nemo-" + hashlib.sha256(os.fsencode(file.resolve())).hexdigest().encode()
    with socket.socket(socket.AF_UNIX) as turn:
        while True:
            try:
                turn.bind(name)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                time.sleep(TURN_SECONDS)
        yield


@contextlib.contextmanager
def _released_when_ended(file: Path, owner: Owner) -> Iterator[None]:
    """Also by a signal that nobody handles: other hosts would wait for ever for an owner that was only asked to stop."""

    def leave(number: int, frame: object) -> None:
        if os.getpid() == owner.process:
            _release(file, owner)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # Handlers belong to the main thread.
    here = threading.current_thread() is threading.main_thread()
    numbers = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if here and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _this_process() -> Owner:
    process = os.getpid()
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Owner(socket.gethostname(), process, _state_and_start(process)[1], since, _namespace())


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _runs(process: int, started: str) -> bool:
    """Whether the process that began at `started` is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    try:
        state, start = _state_and_start(process)
    except OSError:
        # Ended just now, or hidden from other users: asked again later, or told apart by a person.
        return True
    # A zombie has closed its files and does nothing more.
    return state != "Z" and start == started


def _state_and_start(process: int) -> tuple[str, str]:
    """One letter, and clock ticks since the host started. The name before them may hold anything."""
    fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], fields[19]


def _owner_by(path: Path) -> Owner | None:
    """The name in a lock that is taken: it is written just after."""
    for _ in range(LOOKS):
        owner = _parse(_read(path))
        if owner is not None:
            return owner
        time.sleep(TURN_SECONDS)
    return None


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _parse(text: str | None) -> Owner | None:
    """What `_text` wrote, also of an earlier version; None of anything else."""
    try:
        owner = Owner(**json.loads(text or ""))
    except (TypeError, ValueError):
        return None
    return owner if isinstance(owner.process, int) and 0 < owner.process < 2**31 else None
