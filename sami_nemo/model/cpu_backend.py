"""Run the unmodified NeMo + Megatron-core stack on CPUs with gloo.

megatron-core and NeMo name CUDA in a few dozen places: devices of new tensors, streams, type names that
the optimizer compares with. While `cpu_backend()` is active those names are answered with their CPU
counterparts, so that the code that trains on GPUs is the code that the tests and a laptop run.

Nothing here is active on GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_TENSOR_TYPE = torch.Tensor.type


def _on_cpu(argument: Any) -> Any:
    """`argument`, unless it names a CUDA device: then the CPU."""
    if isinstance(argument, str) and argument.startswith("cuda"):
        return "cpu"
    if isinstance(argument, torch.device) and argument.type == "cuda":
        return torch.device("cpu")
    return argument


class _CudaNamesMeanCpu(TorchFunctionMode):
    """Rewrites the CUDA devices that torch functions are called with."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _TENSOR_TYPE and len(args) == 1 and not kwargs:
            # The optimizer sorts parameters by the names of CUDA tensor types.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": _on_cpu(kwargs["device"])}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        if any(_on_cpu(argument) is not argument for argument in args):
            args = tuple(_on_cpu(argument) for argument in args)
        return func(*args, **kwargs)


class _Stream:
    """A stream of work that is always up to date: on the CPU, calls return when they are done."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = 0

    def synchronize(self) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def record_event(self, event: Any = None) -> _Event:
        return event or _Event()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...


class _Event:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


def _itself(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _zero(*_: Any, **__: Any) -> int:
    return 0


_THE_STREAM = _Stream()

_CUDA_STAND_INS: dict[str, Any] = {
    "current_device": lambda: torch.device("cpu"),
    "set_device": _nothing,
    "device_count": _zero,
    "synchronize": _nothing,
    "empty_cache": _nothing,
    "Stream": _Stream,
    "Event": _Event,
    "stream": lambda stream: contextlib.nullcontext(),
    "current_stream": lambda device=None: _THE_STREAM,
    "default_stream": lambda device=None: _THE_STREAM,
    "memory_allocated": _zero,
    "max_memory_allocated": _zero,
    "memory_reserved": _zero,
    "max_memory_reserved": _zero,
    "reset_peak_memory_stats": _nothing,
}


def _split_sizes_to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """megatron's `maybe_move_tensor_to_cpu` without its condition that the tensor be on a GPU."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` until the block ends."""
    absent = object()
    before = owner.__dict__.get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def cpu_backend() -> Iterator[None]:
    """Answer CUDA's names on the CPU until the block ends.

    Build, train and save inside.
    """
    # Importing Megatron imports torch's compiler, which refuses to find stand-ins under CUDA's names.
    from megatron.core.tensor_parallel import random as tensor_parallel_random
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    with contextlib.ExitStack() as stack:
        for name, stand_in in _CUDA_STAND_INS.items():
            stack.enter_context(_replaced(torch.cuda, name, stand_in))
        stack.enter_context(_replaced(torch.Tensor, "cuda", _itself))
        stack.enter_context(_replaced(torch.nn.Module, "cuda", _itself))
        stack.enter_context(_replaced(torch.Tensor, "record_stream", _nothing))

        # The CUDA RNG states that the training tracker keeps do not exist here. Its inference form forks
        # nothing, which changes no number: dropout is 0 and weights are loaded, not drawn.
        tensor_parallel_random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
        # Activation checkpointing saves and restores that state, too.
        stack.enter_context(_replaced(tensor_parallel_random, "_get_cuda_rng_state", _nothing))
        stack.enter_context(_replaced(tensor_parallel_random, "_set_cuda_rng_state", _nothing))
        # megatron-core 0.15 uses this name without defining it where Transformer Engine is absent.
        stack.enter_context(_replaced(moe_utils, "te_general_gemm", None))
        stack.enter_context(_replaced(token_dispatcher, "maybe_move_tensor_to_cpu", _split_sizes_to_host))
        stack.enter_context(_CudaNamesMeanCpu())
        yield
