"""A real Slurm with two nodes on this machine, in a directory of its own: munged, slurmctld and two slurmd.

    with TwoNodes(directory) as slurm:
        subprocess.run(["sbatch", ...], env=os.environ | slurm.environment)

Everything is stopped at the end, jobs included. It needs the Debian packages slurm-wlm and munge. For a look at it by hand:

    python -m tests.slurm.two_nodes bash
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
# Debian puts daemons where only root's path looks.
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
START_SECONDS = 300

CONFIGURATION = """\
ClusterName=sami
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# How long a requeued job waits before it starts again; two minutes by default.
AuthInfo=socket={directory}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
# A job's end is seen by the next one at once.
SchedulerTimeSlice=5
KillWait=5
MinJobAge=300
ReturnToService=2
JobRequeue=1
GresTypes=gpu
# More than there is: what the shipped recipes ask for has to be possible.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1_port} CPUs=128 RealMemory=1000000 Gres=gpu:8
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2_port} CPUs=128 RealMemory=1000000 Gres=gpu:8
PartitionName=work Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class TwoNodes:
    """Use as a context manager; `environment` holds the variables with which Slurm's commands find this cluster."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": PATH}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> TwoNodes:
        for name in ("munge", "state", "spool.n1", "spool.n2"):
            # munged refuses places that others may write to.
            (self.directory / name).mkdir(mode=0o755)
        controller_port, n1_port, n2_port = free_ports(3)
        settings = {"controller_port": controller_port, "n1_port": n1_port, "n2_port": n2_port}
        text = CONFIGURATION.format(directory=self.directory, user=getpass.getuser(), **settings)
        (self.directory / "slurm.conf").write_text(text)
        # slurmd wants a file for each GPU.
        for gpu in range(8):
            (self.directory / f"gpu{gpu}").touch()
        (self.directory / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={self.directory}/gpu[0-7]\n")
        # Slurm 22.05 also wants one beside its configuration, if only an empty one.
        (self.directory / "cgroup.conf").write_text("")
        try:
            self._start_munge()
            self._start("slurmctld", "-D", "-i")
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node)
            self._wait_until(lambda: self.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], "two idle nodes")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.run("scancel", "--full", "--user", getpass.getuser())
            self._wait_until(lambda: not self.run("squeue", "-h"), "the end of all jobs")
        self._stop()

    def run(self, *command: str, timeout: float = 60) -> str:
        """What a command of Slurm prints.

        Raises:
            subprocess.SubprocessError: it fails, or takes too long.
        """
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        return done.stdout.strip()

    def _start_munge(self) -> None:
        place = self.directory / "munge"
        key = place / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = [f"--{name}-file={place / name}" for name in ("key", "log", "pid", "seed")]
        # Forced: the system's checks of directories above ours are not for a test.
        self._start("munged", "--foreground", "--force", f"--socket={place / 'socket'}", *files)
        self._wait_until((place / "socket").exists, "munged")

    def _start(self, program: str, *options: str) -> None:
        with (self.directory / f"{program}.{len(self._daemons)}.out").open("wb") as log:
            path = shutil.which(program, path=PATH)
            assert path is not None
            self._daemons.append(
                subprocess.Popen(
                    [path, *options],
                    env=os.environ | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def _wait_until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(subprocess.SubprocessError):
                if holds():
                    return
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join(file.read_text(errors="replace")[-2000:] for file in self.directory.glob("*.out"))
                raise RuntimeError(f"no {what} (ended: {dead})\n{logs}")
            time.sleep(0.2)

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main() -> int:
    """Run a command, a shell if none is given, beside a cluster that ends with it: python -m tests.slurm.two_nodes [COMMAND]"""
    if missing := missing_programs():
        print(f"{missing[0]} = (not installed): install slurm-wlm and munge", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="slurm") as directory, TwoNodes(Path(directory)) as slurm:
        return subprocess.run(sys.argv[1:] or ["bash"], env=os.environ | slurm.environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
