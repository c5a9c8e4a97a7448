"""Where a run is carried out: devices, and the jobs of a cluster. No result depends on most of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sami_nemo.config.types import Line, NonNegativeInt, PositiveFloat, PositiveInt, Section, VariableToExport


class HardwareConfig(Section):
    """The devices that a run uses."""

    name: str
    """What the machine is called in messages."""
    accelerator: Literal["cpu", "gpu"]
    """What models are trained, scored and sampled on."""
    nodes: PositiveInt = 1
    """Machines that train together."""
    devices_per_node: PositiveInt
    """Processes per node in training: GPUs, or processes on the CPU."""
    gpu_memory_gib: PositiveInt | None = None
    """Memory that a recipe needs of each GPU; checked before anything starts."""
    threads_per_process: PositiveInt | None = None
    """CPU threads of each training process; null divides the cores."""
    host_memory_gib: PositiveInt | None = None
    """Of a node; null: not known, not checked."""
    peak_tflops: PositiveFloat | None = None
    """Dense bf16 matrix multiplication of one device, as its maker states it; for the planner, like all below."""
    memory_gb_s: PositiveFloat | None = None
    """Bandwidth of a device's memory."""
    link_gb_s: PositiveFloat | None = None
    """Bandwidth of a device to the others of its node, in one direction."""
    network_gb_s: PositiveFloat | None = None
    """Bandwidth of a device to other nodes, in one direction."""
    efficiency: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Share of `peak_tflops` that training is expected to reach."""


class JobConfig(Section):
    """What a Slurm job asks for. Null, and what is not given: as `cluster.default` says, or as the stage needs it."""

    partition: Line | None = None
    """Of the cluster."""
    account: Line | None = None
    """Who pays for the job."""
    nodes: PositiveInt | None = None
    """Machines of the job."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs of each."""
    cpus_per_task: PositiveInt | None = None
    """Cores of each node."""
    memory: Line | None = None
    """Of a node, as Slurm writes it: 64G."""
    time: Line | None = None
    """Limit as Slurm writes it: hours:minutes:seconds. A job that comes near it saves its state and is queued again."""
    image: Line | None = None
    """Container image for Pyxis; null: by the stage's environment."""
    mounts: list[Line] = Field(default_factory=list)
    """SOURCE:TARGET, besides the repository, the run, models, principles, data and the hub's cache, links followed."""
    environment: dict[VariableToExport, Line] = Field(default_factory=dict)
    """Variables of the stage, on a cluster and on this machine: cluster.default.environment.NAME=VALUE. They arrive as
    written; in a file quotes keep a value a text."""
    flags: list[Line] = Field(default_factory=list)
    """More options of sbatch, for example --exclusive."""


class ClusterConfig(Section):
    """Where the stages run: on this machine, or as Slurm jobs. No result depends on it."""

    name: str
    """What the cluster is called in messages."""
    scheduler: Literal["local", "slurm"]
    """Run the stages here, or submit them."""
    train_image: Line | None = None
    """Container image of the training environment; null: no container, the environment in .venv."""
    generate_image: Line | None = None
    """Container image of the generation environment; null: no container."""
    mpi: Line | None = None
    """srun --mpi=…, for example pmix or pmi2; null: the cluster's default."""
    retries: NonNegativeInt = 1
    """How often a job is queued again after a failure that is not the user's, such as a lost GPU."""
    requeues: PositiveInt = 20
    """How often at all, time limits included."""
    signal_seconds: PositiveInt = 300
    """Ahead of its time limit a job is asked to save its state; what has not ended half of it later is killed."""
    default: JobConfig = Field(default_factory=JobConfig)
    """For all stages."""
    principles: JobConfig = Field(default_factory=JobConfig)
    """For the principles stages; see `cluster.default`."""
    model: JobConfig = Field(default_factory=JobConfig)
    """For the model stages; see `cluster.default`."""
    queries: JobConfig = Field(default_factory=JobConfig)
    """For the queries stages; see `cluster.default`."""
    sample: JobConfig = Field(default_factory=JobConfig)
    """For the sample stages; see `cluster.default`."""
    merge: JobConfig = Field(default_factory=JobConfig)
    """For the merge stages; see `cluster.default`."""
    groups: JobConfig = Field(default_factory=JobConfig)
    """For the groups stages; see `cluster.default`."""
    train: JobConfig = Field(default_factory=JobConfig)
    """For the train stages; see `cluster.default`."""
    evaluate: JobConfig = Field(default_factory=JobConfig)
    """For the evaluate stages; see `cluster.default`."""
    judge: JobConfig = Field(default_factory=JobConfig)
    """For the judge stages; see `cluster.default`."""
    report: JobConfig = Field(default_factory=JobConfig)
    """For the report stages; see `cluster.default`."""
