"""Processes of a distributed job, forked from a server that has already imported the training stack.

Importing torch, NeMo and Megatron takes 13 s of CPU time in every process; what a test does with them takes one or two.
The server (of Python's multiprocessing) imports them once. It computes nothing, so torch has no threads yet that a fork
would lose. Every rank is a fresh process all the same: one job leaves nothing behind for the next.

Not for GPUs: CUDA cannot be used in a fork of a process that has looked for devices.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "sami_nemo.checkpoint.export",
        "sami_nemo.checkpoint.hf_import",
        "sami_nemo.contrast.data_module",
        "sami_nemo.model.callbacks",
        "sami_nemo.model.contrast_gpt",
        "sami_nemo.model.trainer",
        "tests.distributed.ranks",
        "transformers.models.mistral.modeling_mistral",
        "transformers.models.mixtral.modeling_mixtral",
    ]
)
# Against hanging. A job takes seconds, the first one a minute of imports; a slow machine under load has time enough.
TIMEOUT = 900


def run_ranks(world: int, log: Path, function: Callable[..., None], *arguments: Any) -> int:
    """Call `function`, of an importable module, on every rank as torch.distributed.run would.

    What the ranks print goes to `log`. When one fails, the others are ended.

    Returns:
        0, or the exit status of a rank that failed.
    """
    with started_ranks(world, log, function, *arguments) as ranks:
        running = {rank.sentinel: rank for rank in ranks}
        while running:
            ended = wait(running, TIMEOUT)
            if not ended:
                raise TimeoutError(f"after {TIMEOUT} s:\n{tail(log)}")
            for sentinel in ended:
                rank = running.pop(sentinel)
                rank.join()
                if rank.exitcode:
                    return rank.exitcode
    return 0


@contextlib.contextmanager
def started_ranks(
    world: int, log: Path, function: Callable[..., None], *arguments: Any
) -> Iterator[list[ForkServerProcess]]:
    """Ranks that run, and are killed at the end of the block."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = [_variables(rank, world, store.port) for rank in range(world)]
    ranks = [SERVER.Process(target=_be_rank, args=(each, log, function, arguments)) for each in variables]
    try:
        for rank in ranks:
            rank.start()
        yield ranks
    finally:
        for rank in ranks:
            if rank.pid is not None:
                rank.kill()
                rank.join()


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:] if log.exists() else "(nothing was printed)"


def _variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What torch.distributed.run tells its processes on one machine."""
    here = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    # The store is ours: rank 0 need not make one.
    job |= {"TORCHELASTIC_USE_AGENT_STORE": True, "GLOO_SOCKET_IFNAME": "lo"}
    return {name: str(value) for name, value in (here | job).items()}


def _be_rank(variables: dict[str, str], log: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ.update(variables)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    # As in torch.distributed.run: ranks that share cores get in one another's way with more.
    torch.set_num_threads(1)
    function(*arguments)
