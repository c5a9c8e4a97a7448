"""CUDA's names on the CPU while the backend is active, and only then."""

from __future__ import annotations

import pytest
import torch

from sami_nemo.model.cpu_backend import cpu_backend


def test_cuda_names_mean_the_cpu() -> None:
    with cpu_backend():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.zeros(2, device=torch.cuda.current_device()).device.type == "cpu"
        assert torch.tensor(1.0, pin_memory=True).to("cuda", non_blocking=True).item() == 1.0
        assert torch.ones(1).cuda().item() == 1.0
        assert torch.ones(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.synchronize()


def test_everything_is_restored_after_an_error() -> None:
    names = ("current_device", "Stream", "Event", "synchronize", "stream", "memory_allocated")
    before = {name: getattr(torch.cuda, name) for name in names}
    cuda = torch.Tensor.cuda
    with pytest.raises(ZeroDivisionError), cpu_backend():
        raise ZeroDivisionError
    assert {name: getattr(torch.cuda, name) for name in names} == before
    assert torch.Tensor.cuda is cuda
    assert torch.ones(1).type() == "torch.FloatTensor"
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")
