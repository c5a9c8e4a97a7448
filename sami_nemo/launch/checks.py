"""Combinations of settings that cannot work, found before anything starts. Needs neither torch nor NeMo.

`config/schema.py` checks each field by itself; here several fields are checked together, and with the geometry of the base
model. What a run reads and where it writes is checked in `input_checks.py`. All problems are told at once.
"""

from __future__ import annotations

import re

from sami_nemo.base_model.checks import MODEL_CHECKS
from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.machine import ClusterConfig, JobConfig
from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import load_principles
from sami_nemo.errors import ConfigError, UserError, failures, raise_all
from sami_nemo.prompts.templates import PROMPT_ROOM


def check_config(config: Config) -> None:
    """Refuse settings that do not go together.

    Raises:
        UserError: every such combination, each with one field to change, its value and what to do.
    """
    raise_all(problems_of(config))


def problems_of(config: Config) -> list[UserError]:
    """Combinations of settings that cannot work: one for each field that is at fault."""
    problems: list[UserError] = []
    try:
        geometry = base_geometry(config.model)
    except UserError as error:
        problems.append(error)
    else:
        if geometry is not None:
            problems += failures(MODEL_CHECKS, config, geometry)
    if not problems:
        problems += failures([check_ranks], config)
    problems += failures(CHECKS, config)
    first: dict[str, UserError] = {}
    for problem in problems:
        first.setdefault(problem.field, problem)
    return list(first.values())


def check_ranks(config: Config) -> None:
    """How ranks share the work: the first problem alone, because each check takes for granted what those before it look at."""
    for check in RANK_CHECKS:
        check(config)


def check_dense(config: Config) -> None:
    size = config.train.expert_parallel
    if config.model.architecture != "mixtral" and size > 1:
        raise ConfigError("train.expert_parallel", size, f"{config.model.name} has no experts; set 1")


def check_sequence_parallel(config: Config) -> None:
    train = config.train
    if train.sequence_parallel and train.tensor_parallel == 1:
        remedy = "it splits sequences over the tensor-parallel ranks; set false, or train.tensor_parallel above 1"
        raise ConfigError("train.sequence_parallel", train.sequence_parallel, remedy)
    if config.model.architecture == "mixtral" and train.tensor_parallel > 1 and not train.sequence_parallel:
        remedy = f"experts with train.tensor_parallel={train.tensor_parallel} need it in Megatron; set true"
        raise ConfigError("train.sequence_parallel", train.sequence_parallel, remedy)


def check_dispatcher(config: Config) -> None:
    train = config.train
    mixture = config.model.architecture == "mixtral"
    if mixture and train.pipeline_parallel > 1 and train.moe_dispatcher == "allgather":
        remedy = "cannot follow sequences of varying length through a pipeline; use alltoall"
        raise ConfigError("train.moe_dispatcher", train.moe_dispatcher, remedy)


def check_context_parallel(config: Config) -> None:
    if config.train.context_parallel > 1:
        remedy = "context parallelism is not supported; set 1 and split sequences with train.sequence_parallel"
        raise ConfigError("train.context_parallel", config.train.context_parallel, remedy)


def check_devices(config: Config) -> None:
    """Ranks share the devices evenly, and the queries of a step."""
    train, hardware = config.train, config.hardware
    devices = hardware.nodes * hardware.devices_per_node
    model_parallel = train.tensor_parallel * train.pipeline_parallel
    if devices % model_parallel:
        remedy = (
            f"{hardware.nodes} nodes x {hardware.devices_per_node} devices must be a multiple of tensor x pipeline "
            f"parallel = {model_parallel}"
        )
        raise ConfigError("hardware.devices_per_node", hardware.devices_per_node, remedy)
    # Experts keep the tensor-parallel size, so their ranks are taken from the data-parallel ones.
    if config.data_parallel % train.expert_parallel:
        remedy = f"must divide the {config.data_parallel} data-parallel ranks (devices / tensor / pipeline parallel)"
        raise ConfigError("train.expert_parallel", train.expert_parallel, remedy)
    if train.batch_size % config.data_parallel:
        remedy = f"must be a multiple of {config.data_parallel}: so many data-parallel ranks share a step"
        raise ConfigError("train.batch_size", train.batch_size, remedy)


def check_precision(config: Config) -> None:
    train = config.train
    if train.precision == "fp32" and train.master_weights == "bf16":
        remedy = "weights in fp32 are their own masters; set fp32, or train.precision=bf16"
        raise ConfigError("train.master_weights", train.master_weights, remedy)
    if train.precision == "fp32" and train.gradients == "bf16":
        remedy = "weights in fp32 have gradients in fp32; set null or fp32, or train.precision=bf16"
        raise ConfigError("train.gradients", train.gradients, remedy)
    if train.precision == "bf16" and train.master_weights == "bf16" and train.gradients == "fp32":
        remedy = "weights updated in place take gradients of their own type; set null or bf16, or masters in fp32"
        raise ConfigError("train.gradients", train.gradients, remedy)


def check_constitutions(config: Config) -> None:
    principles = config.principles
    # A writer is asked for two principles and two antitheses.
    available, origin = 4, f"principles.source={principles.source}"
    if principles.source == "file":
        if principles.file is None:
            raise ConfigError("principles.file", "null", "give a principles file, or another principles.source")
        available, origin = load_principles(principles.file).count, principles.file
    elif principles.model is None:
        raise ConfigError("principles.model", "null", "give the model that writes the principles")
    for section in ("train", "evaluate"):
        asked = getattr(config, section).constitutions_per_query
        if asked is not None and asked > available:
            remedy = f"{origin} gives {available} constitutions; lower it or add variants"
            raise ConfigError(f"{section}.constitutions_per_query", asked, remedy)


def check_judge(config: Config) -> None:
    judge = config.judge
    if judge.method == "endpoint" and judge.model is None:
        raise ConfigError("judge.model", "null", "give the endpoint's name of the judge")
    prices = judge.dollars_per_million_input_tokens + judge.dollars_per_million_output_tokens
    if judge.budget_dollars is not None and prices == 0:
        remedy = "a budget needs prices: set judge.dollars_per_million_input_tokens and _output_tokens"
        raise ConfigError("judge.budget_dollars", judge.budget_dollars, remedy)


def check_engine(config: Config) -> None:
    """An engine has its GPUs, and room for the longest request."""
    generate, hardware = config.generate, config.hardware
    size = generate.tensor_parallel
    if hardware.accelerator == "gpu" and size > hardware.devices_per_node:
        remedy = f"one engine runs on one node, which has {hardware.devices_per_node} GPUs"
        raise ConfigError("generate.tensor_parallel", size, remedy)
    needed = config.data.max_query_tokens + PROMPT_ROOM + generate.max_tokens
    if generate.max_model_len < needed:
        remedy = (
            f"set at least {needed}: data.max_query_tokens={config.data.max_query_tokens}, generate.max_tokens="
            f"{generate.max_tokens}, and {PROMPT_ROOM} for constitution and template"
        )
        raise ConfigError("generate.max_model_len", generate.max_model_len, remedy)


def check_time_limits(config: Config) -> None:
    """A job is asked to save its state ahead of its time limit, so it needs more time than that."""
    signal = config.cluster.signal_seconds
    for section in ClusterConfig.model_fields:
        job = getattr(config.cluster, section)
        if not isinstance(job, JobConfig) or job.time is None:
            continue
        field, seconds = f"cluster.{section}.time", slurm_seconds(job.time)
        if seconds is None:
            remedy = "no time limit in Slurm's form: minutes, hours:minutes:seconds or days-hours:minutes:seconds"
            raise ConfigError(field, job.time, remedy)
        elif seconds <= 2 * signal:
            remedy = f"give more than twice cluster.signal_seconds={signal}, after which a job saves its state"
            raise ConfigError(field, job.time, remedy)


def slurm_seconds(time: str) -> int | None:
    """A time limit of Slurm in seconds; None if it is none."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        return None
    days, *parts = (0 if part is None else int(part) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, parts[:2]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# Taken in this order, and only where the model's sizes are sound.
RANK_CHECKS = (check_dense, check_sequence_parallel, check_dispatcher, check_context_parallel, check_devices)
# Each by itself.
CHECKS = (check_precision, check_constitutions, check_judge, check_engine, check_time_limits)
