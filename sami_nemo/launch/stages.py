"""The stages of a run as data: what runs, where, after what, and what it leaves. Imports nothing heavy.

principles ─ model ─ queries ─┬─ sample_instruct ─ groups_instruct ─ evaluate_instruct
                              ├─ sample_0 ─ groups_0 ─ evaluate_0 ─ judge_0 ─ report_0
                              └─ train_1 ─ sample_1 ─ groups_1 ─ evaluate_1 ─ judge_1 ─ report_1 ─ train_2 ─ …
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sami_nemo.config.machine import JobConfig
from sami_nemo.config.schema import Config
from sami_nemo.errors import DataError
from sami_nemo.queries.loaders import local_files
from sami_nemo.run_dir import INSTRUCT, RunDir

ROOT = Path(__file__).parents[2]

# Where the Python of each environment is, if not in .venv: in containers, for instance.
PYTHON_VARIABLES = {"train": "SAMI_TRAIN_PYTHON", "generate": "SAMI_GENERATE_PYTHON"}


@dataclass(frozen=True)
class Stage:
    """A command with declared inputs and outputs."""

    name: str
    environment: Literal["train", "generate"]
    module: str
    """Run as `python -m MODULE --run-dir DIR [--iteration N] [--engine K]`."""
    iteration: int | None = None
    engine: int | None = None
    """Which of several engines that share its work; stages that differ in nothing else may run at the same time."""
    inputs: tuple[str, ...] = ()
    """Names of the stages whose outputs it reads."""
    outputs: tuple[Path, ...] = ()
    """Files or directories of the run; written beside their place, see `run_dir.partial`."""
    distributed: bool = False
    """One process per device of the training layout, under torch.distributed.run."""
    tokenizer_only: bool = False
    """Uses transformers for nothing but a tokenizer."""
    uses_hub: bool = False
    """May fetch what is not on this machine."""
    editable: bool = False
    """A person may edit its outputs; the run goes on from them as they are."""
    review: bool = False
    """Stop the run when it is finished, for a person to look at its first output."""

    @property
    def kind(self) -> str:
        """Its name without numbers: train, sample, …"""
        return self.name.partition("_")[0]

    @property
    def array(self) -> str:
        """The name that all engines of a stage share; else its own."""
        return self.name if self.engine is None else self.name.rpartition("_engine_")[0]


def plan(config: Config) -> list[Stage]:
    """Every stage of the run, in order."""
    run = RunDir(config.run_dir)
    local_model = config.model.prepare != "none" or Path(config.model.path).is_dir()
    stages = [
        Stage(
            "principles",
            "generate",
            "sami_nemo.writer",
            outputs=(run.principles, run.principles_writer),
            uses_hub=config.principles.source == "local",
            editable=True,
            review=config.principles.review,
        ),
        Stage(
            "model",
            "train",
            "sami_nemo.base_model.prepare",
            outputs=(run.hf(0), *([run.hf(INSTRUCT)] if config.evaluate.instruct is not None else [])),
            uses_hub=not local_model or config.evaluate.instruct is not None,
        ),
        Stage(
            "queries",
            "train",
            "sami_nemo.queries.prepare",
            inputs=("principles", "model"),
            outputs=(run.queries,),
            tokenizer_only=True,
            uses_hub=on_hub(config.data.source),
        ),
    ]
    if config.evaluate.instruct is not None:
        stages += _answers(config, run, INSTRUCT, "model")
    for n in range(config.iterations + 1):
        stages += _iteration(config, run, n)
    return stages


def on_hub(source: str) -> bool:
    """Whether `source` is a hub data set: neither a file nor a name of one that is missing."""
    try:
        return not local_files(source)
    except DataError:
        return False


def _iteration(config: Config, run: RunDir, n: int) -> list[Stage]:
    """Stages of iteration n; iteration 0 samples from and evaluates the base model."""
    stages = []
    if n:
        stages.append(
            Stage(
                f"train_{n}",
                "train",
                "sami_nemo.train",
                iteration=n,
                inputs=("model", f"groups_{n - 1}"),
                outputs=(run.train(n), run.hf(n)),
                distributed=True,
            )
        )
    stages += _answers(config, run, n, f"train_{n}" if n else "model")
    instruct = config.evaluate.instruct is not None
    judged = config.judge.method != "none" and (n > 0 or instruct)
    if judged:
        baselines = [*(["evaluate_0"] if n else []), *(["evaluate_instruct"] if instruct else [])]
        # One after the other: they share the budget and the cache of replies. By the proxy, the baseline's responses
        # are scored once, at iteration 0.
        first = n == (0 if instruct else 1)
        stages.append(
            Stage(
                f"judge_{n}",
                *_judge(config),
                iteration=n,
                inputs=(f"evaluate_{n}", *baselines, *([] if first else [f"judge_{n - 1}"])),
                outputs=(run.judge(n),),
                distributed=config.judge.method == "pmi",
            )
        )
    # Rewrites metrics.json and one page, which grow with the run, so they are no outputs of its own. One report comes
    # after the other: what else runs at the same time on a cluster does not write these.
    before = f"report_{n - 1}" if n else "evaluate_instruct" if instruct else None
    inputs = (f"judge_{n}" if judged else f"evaluate_{n}", *([before] if before else []))
    stages.append(Stage(f"report_{n}", "train", "sami_nemo.report.write", iteration=n, inputs=inputs))
    return stages


def _judge(config: Config) -> tuple[Literal["train", "generate"], str]:
    """Environment and module of whoever judges."""
    if config.judge.method == "pmi":
        return "train", "sami_nemo.evaluate.pmi"
    return "generate", "sami_nemo.evaluate.judge"


def _answers(config: Config, run: RunDir, n: int, model: str) -> list[Stage]:
    """Sampling and evaluation of one model: of iteration n, or the instruct baseline.

    Args:
        model: the stage that makes it.
    """
    name = "instruct" if n == INSTRUCT else str(n)
    stages = _sampling(config, run, n, model, name)
    return [
        *stages,
        Stage(
            f"groups_{name}",
            "train",
            "sami_nemo.contrast.groups",
            iteration=n,
            inputs=("queries", model, stages[-1].name),
            outputs=(run.groups(n),),
            tokenizer_only=True,
        ),
        Stage(
            f"evaluate_{name}",
            "train",
            "sami_nemo.evaluate.bound",
            iteration=n,
            inputs=(model, f"groups_{name}"),
            outputs=(run.evaluation(n),),
            distributed=True,
        ),
    ]


def _sampling(config: Config, run: RunDir, n: int, model: str, name: str) -> list[Stage]:
    """One engine that answers all requests, or several that share them and a stage that puts their answers together."""
    inputs, module = ("principles", "queries", model), "sami_nemo.generate.sample"
    if config.generate.engines == 1:
        return [Stage(f"sample_{name}", "generate", module, iteration=n, inputs=inputs, outputs=(run.responses(n),))]
    engines = [
        Stage(
            f"sample_{name}_engine_{k}",
            "generate",
            module,
            iteration=n,
            engine=k,
            inputs=inputs,
            outputs=(run.engine_responses(n, k),),
        )
        for k in range(config.generate.engines)
    ]
    merge = Stage(
        f"merge_{name}",
        "generate",
        "sami_nemo.generate.merge",
        iteration=n,
        inputs=("principles", "queries", model, *(engine.name for engine in engines)),
        outputs=(run.responses(n),),
        tokenizer_only=True,
    )
    return [*engines, merge]


def python(environment: str) -> Path:
    """The interpreter of an environment, which may not exist."""
    default = ROOT / ".venv" / environment / "bin" / "python"
    return Path(os.environ.get(PYTHON_VARIABLES[environment], default))


def command(stage: Stage, config: Config) -> list[str]:
    """The command line of a stage on this machine; on a cluster of several nodes, that of each node."""
    words = [str(python(stage.environment))]
    if stage.distributed:
        hardware = config.hardware
        words += ["-m", "torch.distributed.run", f"--nproc-per-node={hardware.devices_per_node}"]
        if hardware.nodes == 1:
            # Port 0: a free one. The loopback address needs no name of this machine to resolve.
            words += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
        else:
            words += [f"--nnodes={hardware.nodes}"]
    words += ["-m", stage.module, "--run-dir", str(config.run_dir)]
    if stage.iteration is not None:
        words += ["--iteration", "instruct" if stage.iteration == INSTRUCT else str(stage.iteration)]
    if stage.engine is not None:
        words += ["--engine", str(stage.engine)]
    return words


def module_path() -> str:
    """PYTHONPATH with which the package is found from any working directory."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def environment_variables(stage: Stage, config: Config) -> dict[str, str]:
    """What a stage finds in its environment besides the launcher's own."""
    hardware = config.hardware
    processes = hardware.devices_per_node if stage.distributed else 1
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    if stage.distributed and hardware.threads_per_process is not None:
        threads = hardware.threads_per_process
    variables = {
        "PYTHONPATH": module_path(),
        # Log files show what happens when it happens.
        "PYTHONUNBUFFERED": "1",
        # Tokenizers warn, and turn their threads off, when a process forks after using them.
        "TOKENIZERS_PARALLELISM": "false",
    }
    # vLLM's tensor-parallel processes share the cores; it divides them itself.
    if stage.environment == "train":
        variables["OMP_NUM_THREADS"] = str(threads)
    if stage.tokenizer_only:
        # Without torch transformers is there in 2 seconds instead of 6. It says so at length, unless told not to.
        variables |= {"USE_TORCH": "0", "TRANSFORMERS_VERBOSITY": "error"}
    if stage.distributed and hardware.accelerator == "cpu":
        # glibc keeps what a micro-batch frees for the next one. Otherwise every activation is mapped, cleared and unmapped
        # by the kernel: a fifth of a training step (docs/performance.md).
        variables |= {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**36)}
    if not stage.uses_hub:
        variables["HF_HUB_OFFLINE"] = "1"
    if stage.distributed and hardware.accelerator == "cpu" and hardware.nodes == 1:
        # Without it gloo looks up this machine's name, which does not resolve everywhere.
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    if stage.distributed and hardware.accelerator == "gpu":
        # Megatron overlaps tensor-parallel communication only if kernels keep their order, on GPUs before Blackwell.
        variables["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return variables | stated_variables(stage, config)


def stated_variables(stage: Stage, config: Config) -> dict[str, str]:
    """What the configuration adds to a stage's environment."""
    default = config.cluster.default
    own: JobConfig = getattr(config.cluster, stage.kind, default)
    return {**default.environment, **own.environment}


def command_line(stage: Stage, config: Config) -> str:
    """The command with its variables, to be pasted into a shell."""
    variables = (f"{name}={shlex.quote(value)}" for name, value in environment_variables(stage, config).items())
    return " ".join([*variables, shlex.join(command(stage, config))])
