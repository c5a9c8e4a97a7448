"""vLLM's engine, inside this process, with greedy decoding.

Inside, because then every request of a chunk waits before the first step is scheduled: the batches, and with them
greedy ties, are the same in each run. (An engine in a process of its own starts on the requests that have arrived.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sami_nemo.config.schema import Config
from sami_nemo.geometry import Geometry
from sami_nemo.planner.engine import cache_bytes, requests_together
from sami_nemo.serving.plain_path import plain_path

# Read by vLLM while it is imported.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # The model is on this machine by now.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# The prefix cache finds whole blocks only. vLLM's own size on CPUs, 128 tokens, is more than what prompts of short queries
# share; its kernels there want multiples of 32.
CPU_BLOCK_TOKENS = 32


@dataclass(frozen=True)
class BatchLimits:
    """What bounds the requests that an engine works on at a time; None: vLLM finds it out."""

    max_num_seqs: int | None
    cache_bytes: int | None
    """Of keys and values."""


def batch_limits(config: Config, geometry: Geometry) -> BatchLimits:
    """The limits that the settings state, and on CPUs what follows from the machine's memory for the others.

    Derived once for a stage: the memory that is free changes.
    """
    generate = config.generate
    if config.hardware.accelerator == "gpu":
        return BatchLimits(generate.max_num_seqs, None)
    room = cache_bytes(geometry, config)
    assert room is not None
    return BatchLimits(requests_together(geometry, config, generate.max_model_len), int(room))


@dataclass(frozen=True)
class Answer:
    """One sampled response."""

    text: str
    token_ids: tuple[int, ...]
    """Without the end-of-sequence token."""
    finish_reason: str
    cached_tokens: int
    """Of the prompt, whose keys and values were there from earlier prompts."""


def prefix_order(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Indices of `prompts` such that those with the same head follow one another, for the prefix cache to hit.

    In the order of a dictionary, whatever the template puts first: the same constitution, then the same query.
    """
    return sorted(range(len(prompts)), key=lambda index: tuple(prompts[index]))


class Engine:
    """A loaded model. Use as a context manager: worker processes (tensor parallelism) end with it.

    Args:
        model: directory of a Hugging Face checkpoint.
        limits: see `batch_limits`.
        prefix_caching: false computes every prompt whole, for comparisons.
    """

    def __init__(self, model: Path, config: Config, limits: BatchLimits, prefix_caching: bool = True) -> None:
        on_cpu = config.hardware.accelerator == "cpu"
        set_environment(config)
        # What vLLM says of Triton and of torch's deprecations while it is imported, before it sets up its own log.
        logging.getLogger("vllm").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        from vllm import EngineArgs, LLMEngine, SamplingParams

        generate = config.generate
        self._names = contextlib.ExitStack()
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(self._names.enter_context(plain_path(model))),
                tokenizer_mode="hf",
                trust_remote_code=False,
                dtype=generate.dtype,
                seed=config.seed,
                max_model_len=generate.max_model_len,
                max_num_seqs=limits.max_num_seqs,
                tensor_parallel_size=generate.tensor_parallel,
                distributed_executor_backend="uni" if generate.tensor_parallel == 1 else "mp",
                gpu_memory_utilization=generate.gpu_memory_utilization,
                kv_cache_memory_bytes=limits.cache_bytes,
                block_size=CPU_BLOCK_TOKENS if on_cpu else None,
                # Compilation takes longer than it saves on the CPU.
                enforce_eager=on_cpu,
                enable_prefix_caching=prefix_caching,
                disable_log_stats=True,
                use_tqdm_on_load=False,
            )
        )
        # No stop strings: the tokens of a run-on stay visible, and the filters count it.
        self._sampling = SamplingParams(temperature=0, max_tokens=generate.max_tokens)

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        on_finished: Callable[[Answer], None],
        order: Callable[[Sequence[Sequence[int]]], Sequence[int]] = prefix_order,
    ) -> list[Answer]:
        """Sample one response to each prompt.

        The prefix cache starts empty, so that the answers depend on nothing but `prompts`.

        Args:
            prompts: token ids.
            on_finished: called with each answer when it is whole.
            order: gives the indices of the prompts as the engine is to take them.

        Returns:
            Answers in the order of `prompts`.
        """
        from vllm.inputs import tokens_input

        self._engine.reset_prefix_cache()
        for index in order(prompts):
            self._engine.add_request(str(index), tokens_input(list(prompts[index])), self._sampling)
        answers: dict[int, Answer] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if not output.finished:
                    continue
                completion = output.outputs[0]
                # Without stop strings only an end-of-sequence token gives "stop", and it is the last.
                ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
                cached = output.num_cached_tokens or 0
                answer = Answer(completion.text, tuple(ids), completion.finish_reason, cached)
                answers[int(output.request_id)] = answer
                on_finished(answer)
        return [answers[index] for index in range(len(prompts))]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._engine.engine_core.shutdown()
        self._names.close()


def set_environment(config: Config) -> None:
    """Set the variables that torch and vLLM read while they are imported; what the user has set stays."""
    variables = dict(ENVIRONMENT)
    if config.hardware.accelerator == "cpu":
        processes = config.generate.tensor_parallel
        # Otherwise vLLM goes down to one thread once the model is loaded.
        variables["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
        # Threads that spin at the end of each small operation make sampling four times slower (measured) as soon as
        # another program wants a core.
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
        if processes > 1:
            # Binding wants a NUMA node for each process, and refuses to start without.
            variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    for variable, value in variables.items():
        os.environ.setdefault(variable, value)
