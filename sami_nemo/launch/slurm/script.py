"""The scripts of a run's Slurm jobs: one per stage, rendered from job.sh.j2.

Engines that share the requests of a stage are the tasks of one job array.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from sami_nemo.config.machine import JobConfig
from sami_nemo.config.schema import Config
from sami_nemo.launch.slurm.mounts import hub_variables, mounts_of
from sami_nemo.launch.stages import Stage, command, environment_variables, python, stated_variables
from sami_nemo.run_dir import RunDir

TEMPLATE = Path(__file__).with_name("job.sh.j2")
# Exit statuses by which job.py talks to the script. The second is BSD's EX_TEMPFAIL.
NOTHING_TO_DO = 10
START_AGAIN = 75


@dataclass(frozen=True)
class Job:
    """What one call of sbatch submits: a stage, or those of an array."""

    name: str
    stages: tuple[Stage, ...]
    script: str
    path: Path
    """Of the script, absolute."""
    after: tuple[str, ...]
    """Stages that have to end well before it starts; some of them may be finished."""


def jobs_of(config: Config, stages: Sequence[Stage]) -> list[Job]:
    """The jobs of `stages`, in order."""
    return [job_of(config, name, tuple(group)) for name, group in groupby(stages, key=lambda stage: stage.array)]


def job_of(config: Config, name: str, stages: tuple[Stage, ...]) -> Job:
    path = (RunDir(config.run_dir).jobs / f"{name}.sh").resolve()
    after = tuple(dict.fromkeys(source for stage in stages for source in stage.inputs))
    return Job(name, stages, render(config, stages), path, after)


def render(config: Config, stages: tuple[Stage, ...]) -> str:
    """The script of one stage, or of an array of them."""
    first, run = stages[0], RunDir(config.run_dir.resolve())
    job = job_settings(config, first)
    image = image_of(config, first)
    # Inside an image, the first Python is the stage's; outside, it is in .venv on a file system that all nodes see.
    interpreter = "python3" if image else str(python(first.environment))
    # The engine's number comes from the array, and everything else is the same for all its tasks.
    words = [interpreter, *command(dataclasses.replace(first, engine=None), config)[1:]]
    variables = {**environment_variables(first, config), **hub_variables(job)}
    quoted = {name: shlex.quote(value) for name, value in variables.items()}
    stated = "OMP_NUM_THREADS" in job.environment or (
        first.distributed and config.hardware.threads_per_process is not None
    )
    if first.environment == "train" and not stated:
        processes = config.hardware.devices_per_node if first.distributed else 1
        quoted["OMP_NUM_THREADS"] = f"$((SLURM_CPUS_ON_NODE > {processes} ? SLURM_CPUS_ON_NODE / {processes} : 1))"
    return _template().render(
        options=sbatch_options(config, stages, job, run),
        stage=first.array,
        stage_expression=first.name if first.engine is None else f'"{first.array}_engine_$SLURM_ARRAY_TASK_ID"',
        run_dir=shlex.quote(str(config.run_dir)),
        logs=shlex.quote(str(run.log("x").parent)),
        log_pattern=shlex.quote(_without_symbols(run.log("x").parent)),
        variables=quoted,
        several_nodes=first.distributed and config.hardware.nodes > 1,
        srun=" ".join(srun_words(config, job, image)),
        python=shlex.quote(interpreter),
        command=shlex.join(words) + ("" if first.engine is None else ' --engine "$SLURM_ARRAY_TASK_ID"'),
        patience=max(1, config.cluster.signal_seconds // 2),
        nothing_to_do=NOTHING_TO_DO,
        start_again=START_AGAIN,
    )


@functools.cache
def _template() -> Template:
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(TEMPLATE.read_text())


def job_settings(config: Config, stage: Stage) -> JobConfig:
    """What the stage's job asks for: its own settings over the cluster's defaults over what the stage needs."""
    own: JobConfig = getattr(config.cluster, stage.kind)
    default = config.cluster.default
    needs = {"nodes": config.hardware.nodes if stage.distributed else 1, "gpus_per_node": _gpus(config, stage)}
    stated = {
        key: value
        for section in (default, own)
        for key, value in section.model_dump(exclude={"mounts", "environment", "flags"}).items()
        if value is not None
    }
    return JobConfig(
        **needs | stated,
        mounts=[*default.mounts, *own.mounts],
        environment=stated_variables(stage, config),
        flags=[*default.flags, *own.flags],
    )


def _gpus(config: Config, stage: Stage) -> int:
    """Of each node."""
    if config.hardware.accelerator == "cpu":
        return 0
    if stage.distributed:
        return config.hardware.devices_per_node
    serves_writer = stage.kind == "principles" and config.principles.source == "local"
    return config.generate.tensor_parallel if stage.kind == "sample" or serves_writer else 0


def image_of(config: Config, stage: Stage) -> str | None:
    """The container image of a stage; None: no container. Only Slurm's jobs run in containers."""
    if config.cluster.scheduler != "slurm":
        return None
    by_environment = {"train": config.cluster.train_image, "generate": config.cluster.generate_image}
    return job_settings(config, stage).image or by_environment[stage.environment]


def sbatch_options(config: Config, stages: tuple[Stage, ...], job: JobConfig, run: RunDir) -> list[str]:
    first = stages[0]
    array = first.engine is not None
    log = RunDir(Path(_without_symbols(run.root))).job_log(f"{first.array}_engine_%a" if array else first.name)
    options = [
        f"--job-name={config.name}.{first.array}",
        f"--output={_sbatch_word(str(log))}",
        "--open-mode=append",
        f"--chdir={_sbatch_word(str(Path.cwd()))}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        f"--signal=B:USR1@{config.cluster.signal_seconds}",
    ]
    if array:
        options.append(f"--array={','.join(str(stage.engine) for stage in stages)}")
    if job.gpus_per_node:
        options.append(f"--gpus-per-node={job.gpus_per_node}")
        if job.gpus_per_node == config.hardware.devices_per_node:
            # Who takes all GPUs of a node needs its cores, too.
            options.append("--exclusive")
    named = {
        "partition": job.partition,
        "account": job.account,
        "time": job.time,
        "mem": job.memory,
        "cpus-per-task": job.cpus_per_task,
    }
    options += [f"--{name}={_sbatch_word(str(value))}" for name, value in named.items() if value is not None]
    return [*options, *map(_flag, job.flags)]


def _flag(flag: str) -> str:
    """An option of the user's: its value in quotes where it needs them, unless it has some already."""
    name, equals, value = flag.partition("=")
    return flag if re.search(r"[\\'\"]", value) else f"{name}{equals}{_sbatch_word(value)}" if value else flag


def _sbatch_word(text: str) -> str:
    """As sbatch reads the lines of its options: quotes like a shell, but backslashes escape between them, too."""
    return shlex.quote(text.replace("\\", "\\\\"))


def _without_symbols(path: Path) -> str:
    """A path in which Slurm sees no symbols to replace, such as %j."""
    return str(path).replace("%", "%%")


def srun_words(config: Config, job: JobConfig, image: str | None) -> list[str]:
    """srun with what every step of a job has in common, as words of a shell."""
    # Bound to the cores of the job as a whole: a process per GPU binds its own threads.
    words = ["srun", "--cpu-bind=none", "--kill-on-bad-exit=1"]
    if job.cpus_per_task is not None:
        # Since Slurm 22.05 a step does not take it from the job.
        words.append(f"--cpus-per-task={job.cpus_per_task}")
    if config.cluster.mpi is not None:
        words.append(f"--mpi={shlex.quote(config.cluster.mpi)}")
    if image is not None:
        mounts = ",".join(mounts_of(config, job))
        words += [
            f"--container-image={shlex.quote(image)}",
            # Of its own for each job: two jobs on a node would share the file system of one name.
            '--container-name="sami_nemo_$SLURM_JOB_ID"',
            # In quotes also where no shell needs them: a linter takes its commas for a mistake.
            "--container-mounts='" + mounts.replace("'", "'\"'\"'") + "'",
            f"--container-workdir={shlex.quote(str(Path.cwd()))}",
        ]
    return words


def command_of(job: Job) -> str:
    """How the job is submitted, with names of stages in place of ids."""
    dependency = f"--dependency=afterok:{':'.join(f'<{name}>' for name in job.after)} " if job.after else ""
    return f"sbatch --parsable {dependency}{shlex.quote(str(job.path))}"
