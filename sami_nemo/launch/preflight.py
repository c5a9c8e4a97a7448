"""Is everything there that a run needs? Asked before the first stage starts, and answered in seconds, with every problem."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from sami_nemo.base_model.locate import HUB_NAME
from sami_nemo.config.address import is_loopback
from sami_nemo.config.schema import Config
from sami_nemo.errors import CheckpointError, EnvironmentMismatch, UserError
from sami_nemo.launch.gpus import check_gpu_stack, describe_gpus
from sami_nemo.launch.hub import absent_models, check_hub
from sami_nemo.launch.programs import run
from sami_nemo.launch.slurm.jobs import check_slurm
from sami_nemo.launch.slurm.script import image_of, job_settings, jobs_of
from sami_nemo.launch.stages import ROOT, Stage, plan, python
from sami_nemo.planner.engine import GIB, total_memory
from sami_nemo.planner.fit import LEAST_PROCESS_BYTES, check_plan, disk_bytes, host_bytes
from sami_nemo.queries.loaders import local_files

ENVIRONMENTS = ("train", "generate")
# Each check takes a fraction of a second; only a program that hangs, or a machine that is very busy, comes near this.
TIMEOUT_SECONDS = 60


def preflight(config: Config) -> tuple[list[UserError], dict[str, dict[str, str]]]:
    """Look at this machine, or at the cluster from its login node, without changing anything.

    Returns:
        Everything that would make the run fail, and the package versions of each environment that is used here.
    """
    stages = plan(config)
    in_images = {stage.environment for stage in stages if image_of(config, stage) is not None}
    problems, versions = check_environments(config, [name for name in ENVIRONMENTS if name not in in_images])
    if config.cluster.scheduler == "slurm":
        problems += check_slurm(config, jobs_of(config, stages))
    else:
        problems += check_nodes(config) + check_devices(config) + check_cpu(config)
    problems += check_model(config)
    problems += check_data(config)
    problems += check_hub(config)
    problems += check_keys(config)
    problems += check_plan(config)
    problems += check_host_memory(config)
    problems += check_disk(config)
    return problems, versions


def check_environments(
    config: Config, names: Sequence[str] = ENVIRONMENTS
) -> tuple[list[UserError], dict[str, dict[str, str]]]:
    """The environments exist and have the pinned packages; the trackers that are configured are installed."""
    problems: list[UserError] = []
    versions: dict[str, dict[str, str]] = {}
    for environment in names:
        interpreter = python(environment)
        if not interpreter.exists():
            remedy = f"no such file; run `python3 tools/setup_environments.py {environment}`"
            problems.append(EnvironmentMismatch(f"{environment} environment", interpreter, remedy))
            continue
        status, output, error = run([str(interpreter), "-m", "sami_nemo.versions", environment], TIMEOUT_SECONDS, ROOT)
        if status == 0:
            versions[environment] = json.loads(output)
        else:
            problems.append(_mismatch(f"{environment} environment", interpreter, error))
    if "train" in versions:
        problems += _check_trackers(config)
    return problems, versions


def _mismatch(field: str, interpreter: Path, error: str) -> UserError:
    """The line that the version check printed, or the end of whatever went wrong."""
    line = (error.strip().splitlines() or ["its version check failed"])[-1]
    return EnvironmentMismatch(field, interpreter, line)


def _check_trackers(config: Config) -> list[UserError]:
    wanted = {
        "tensorboard": ("logger.tensorboard", config.logger.tensorboard),
        "wandb": ("logger.wandb_project", config.logger.wandb_project),
        "mlflow": ("logger.mlflow_tracking_uri", config.logger.mlflow_tracking_uri),
    }
    problems: list[UserError] = []
    for package, (field, value) in wanted.items():
        if not value:
            continue
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
        if run([str(python("train")), "-c", find], TIMEOUT_SECONDS)[0] != 0:
            remedy = f"the package {package} is not installed; run `{shlex.quote(str(python('train')))} -m pip install {package}`"
            problems.append(EnvironmentMismatch(field, value, remedy))
    return problems


def check_devices(config: Config) -> list[UserError]:
    """This machine has the GPUs of a node, in number and memory, and torch can use them."""
    hardware = config.hardware
    if hardware.accelerator == "cpu":
        return []
    needs, found, enough = _gpus(config, hardware.devices_per_node)
    if enough:
        return check_gpu_stack(python("train"))
    remedy = (
        f"{config.recipe} needs {hardware.nodes} x {needs}; found one node with {found}; run it on such a "
        "machine (cluster=slurm submits it), or choose hardware (hardware=NAME, see conf/hardware) and parallel layout "
        "that fit"
    )
    return [EnvironmentMismatch("hardware", hardware.name, remedy)]


def _gpus(config: Config, count: int) -> tuple[str, str, bool]:
    """GPUs that are needed and found here, in words, and whether they are enough."""
    memory = config.hardware.gpu_memory_gib
    found, enough = describe_gpus(count, memory or 0)
    return f"{count} GPUs" + (f" with {memory} GiB or more" if memory else ""), found, enough


def check_nodes(config: Config) -> list[UserError]:
    """This launcher starts processes on one machine; Slurm starts them on several."""
    if config.cluster.scheduler != "local" or config.hardware.nodes == 1:
        return []
    remedy = f"runs on one machine, and {config.recipe} asks for hardware.nodes={config.hardware.nodes}; choose cluster=slurm"
    return [EnvironmentMismatch("cluster", config.cluster.name, remedy)]


def check_cpu(config: Config) -> list[UserError]:
    """Where this machine's own processor and memory do the work, they can hold it at all, be it at a crawl."""
    hardware, cache = config.hardware, config.generate.cpu_kv_cache_gib
    if hardware.accelerator == "gpu":
        return []
    memory, needed = total_memory(), host_bytes(config, LEAST_PROCESS_BYTES) or 0
    if cache is not None and cache * GIB + LEAST_PROCESS_BYTES > memory:
        remedy = f"this machine has {memory / GIB:.0f} GiB of memory; lower it, or set null to take what is free"
        return [EnvironmentMismatch("generate.cpu_kv_cache_gib", cache, remedy)]
    if needed > memory:
        remedy = (
            f"{needed / GIB:.0f} GiB of memory are needed at least, this machine has {memory / GIB:.0f} (tools/plan.py "
            "says for what); take fewer processes (hardware.devices_per_node) or a smaller model"
        )
        return [EnvironmentMismatch("hardware", hardware.name, remedy)]
    threads, most = hardware.threads_per_process, most_threads(hardware.devices_per_node)
    if threads is not None and threads > most:
        remedy = f"this machine can start {most} in each process, and has {os.cpu_count()} cores; lower it"
        return [EnvironmentMismatch("hardware.threads_per_process", threads, remedy)]
    return []


def most_threads(processes: int) -> int:
    """Threads that Linux lets each of some processes start; the stack of one takes two of its process's mappings."""
    threads, mappings = (
        int(Path("/proc/sys", name).read_text()) for name in ("kernel/threads-max", "vm/max_map_count")
    )
    return min(threads // processes, mappings // 2)


def check_node(config: Config, stage: Stage) -> list[UserError]:
    """Whether the node that a job has landed on can carry out its stage, asked in the stage's environment."""
    gpus = job_settings(config, stage).gpus_per_node
    if not gpus:
        return []
    needs, found, enough = _gpus(config, gpus)
    if enough:
        return check_gpu_stack(Path(sys.executable))
    remedy = f"{stage.name} needs {needs}; {socket.gethostname()} has {found}; see cluster.{stage.kind}"
    return [EnvironmentMismatch("node", socket.gethostname(), remedy)]


def check_model(config: Config) -> list[UserError]:
    """The base model, the instruct baseline and a local writer are there, can be made, or may be on the hub."""
    remedy = "no such directory; give a Hugging Face checkpoint or a hub name"
    return [
        CheckpointError(field, path, remedy)
        for field, path in absent_models(config).items()
        if not HUB_NAME.fullmatch(path)
    ]


def check_keys(config: Config) -> list[UserError]:
    """The keys of the endpoints are in the environment: the judge is first asked after hours of training."""
    endpoints = {
        "principles": config.principles if config.principles.source == "endpoint" else None,
        "judge": config.judge if config.judge.method == "endpoint" else None,
    }
    problems: list[UserError] = []
    for section, endpoint in endpoints.items():
        if endpoint is None or os.environ.get(endpoint.api_key_variable):
            continue
        if not is_loopback(endpoint.base_url):
            remedy = f"the environment has no such variable; set it to the key of the {section} endpoint"
            problems.append(EnvironmentMismatch(f"{section}.api_key_variable", endpoint.api_key_variable, remedy))
    return problems


def check_data(config: Config) -> list[UserError]:
    """The files of queries are there, if they are files."""
    try:
        local_files(config.data.source)
    except UserError as error:
        return [error]
    return []


def check_disk(config: Config) -> list[UserError]:
    """Room for every iteration's export and the largest training checkpoints."""
    needed = disk_bytes(config)
    if needed is None:
        return []
    runs = Path(config.runs_dir).resolve()
    existing = next(path for path in (runs, *runs.parents) if path.exists())
    if config.run_dir.exists():
        # What an interrupted run has written is part of what it needs.
        needed -= sum(file.stat().st_size for file in config.run_dir.rglob("*") if file.is_file())
    free = shutil.disk_usage(existing).free
    if free >= needed:
        return []
    remedy = (
        f"about {needed / GIB:.0f} GiB are needed, {free / GIB:.0f} GiB are free; make room or set another runs_dir"
    )
    return [EnvironmentMismatch("runs_dir", config.runs_dir, remedy)]


def check_host_memory(config: Config) -> list[UserError]:
    """A node's memory, where the hardware states it, is enough for its processes."""
    needed, stated = host_bytes(config), config.hardware.host_memory_gib
    if needed is None or stated is None or needed <= stated * GIB:
        return []
    remedy = (
        f"{needed / GIB:.0f} GiB are needed on a node (tools/plan.py says for what); take more nodes or larger ones"
    )
    return [EnvironmentMismatch("hardware.host_memory_gib", stated, remedy)]
