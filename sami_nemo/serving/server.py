"""vLLM's own OpenAI-compatible server for a local model, for as long as a context is open."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from sami_nemo.config.schema import Config
from sami_nemo.errors import CheckpointError
from sami_nemo.serving.engine import set_environment
from sami_nemo.serving.plain_path import plain_path

# Of a 7 B model from a slow disk; on the CPU a small one takes half a minute.
START_SECONDS = 900.0
POLL_SECONDS = 0.5
GRACE_SECONDS = 20.0
# On CPUs: a writer has one conversation at a time.
CACHE_GIB = 2
LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def serve(model: Path, config: Config) -> Iterator[tuple[str, str]]:
    """Serve the checkpoint in `model` on a free loopback port. What it prints goes to this process's output.

    Yields:
        The base URL, and the name that the model is served under.

    Raises:
        CheckpointError: the server ends or does not answer in time.
    """
    port, name = free_port(), model.name
    set_environment(config)
    with plain_path(model) as place:
        # In this process's group: whoever kills the stage kills the server with it.
        server = subprocess.Popen(command(place, name, port, config), stdin=subprocess.DEVNULL)
        try:
            # A stop from outside must run what follows `finally`, too: the default ends the process at once.
            with raising_on_sigterm():
                wait_until_ready(server, port, model)
                yield f"http://{LOOPBACK}:{port}/v1", name
        finally:
            stop(server)


def command(model: Path, name: str, port: int, config: Config) -> list[str]:
    """vLLM's command line, with the settings that sampling uses."""
    generate = config.generate
    cache = generate.cpu_kv_cache_gib or CACHE_GIB
    on_cpu = config.hardware.accelerator == "cpu"
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", name),
        *("--host", LOOPBACK, "--port", str(port)),
        # The context is the model's own: a writer that is asked again sees its earlier replies.
        *("--dtype", generate.dtype, "--seed", str(config.seed)),
        *("--tensor-parallel-size", str(generate.tensor_parallel)),
        *("--gpu-memory-utilization", str(generate.gpu_memory_utilization)),
        *(("--max-num-seqs", str(generate.max_num_seqs)) if generate.max_num_seqs else ()),
        *(("--enforce-eager", "--kv-cache-memory-bytes", str(cache * 2**30)) if on_cpu else ()),
    ]


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def wait_until_ready(server: subprocess.Popen[bytes], port: int, model: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(port):
        if server.poll() is not None:
            remedy = f"vLLM's server ended with {server.returncode}; the stage's log says why"
            raise CheckpointError("principles.model", model, remedy)
        if time.monotonic() > deadline:
            remedy = f"vLLM's server did not answer within {START_SECONDS:.0f} s; the stage's log may say why"
            raise CheckpointError("principles.model", model, remedy)
        time.sleep(POLL_SECONDS)


def _answers(port: int) -> bool:
    # Not through a proxy that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{LOOPBACK}:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that contexts are left in order."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server, which ends its workers; returns when it is gone."""
    server.terminate()
    try:
        server.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
