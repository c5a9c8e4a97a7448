"""What is asked of vLLM, and in which order. vLLM itself: tests/integration/test_sampling.py."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.planner import engine as planner_engine
from sami_nemo.serving.engine import BatchLimits, batch_limits, prefix_order
from sami_nemo.serving.plain_path import READ_BY_VLLM, plain_path

GIB = 2**30


def shared_with_previous(prompts: list[list[int]], order: list[int]) -> int:
    """Tokens that a prompt has in common with the one before it: what a prefix cache of one entry would spare."""
    total = 0
    for earlier, later in itertools.pairwise(order):
        pairs = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(prompts[earlier], prompts[later], strict=False)
        )
        total += len(list(pairs))
    return total


def test_prompts_with_the_same_head_follow_one_another() -> None:
    # Two constitutions (7, 8) by turns, as a plan has them: query after query.
    prompts = [[7, 7, 1], [8, 8, 1], [7, 7, 2], [8, 8, 2], [7, 7, 1, 5]]
    assert prefix_order(prompts) == [0, 4, 2, 1, 3]
    assert shared_with_previous(prompts, prefix_order(prompts)) == 3 + 2 + 0 + 2
    assert shared_with_previous(prompts, [0, 1, 2, 3, 4]) == 0


def test_equal_prompts_keep_their_order() -> None:
    assert prefix_order([(1, 2), (1, 1), (1, 2)]) == [1, 0, 2]


def mistral(**generate: Any) -> Config:
    settings = {"dtype": "bfloat16"} | generate
    return compose(
        ["recipe=sami_mistral", "hardware=laptop", *(f"generate.{key}={value}" for key, value in settings.items())]
    )


def limits(config: Config) -> BatchLimits:
    geometry = base_geometry(config.model)
    assert geometry is not None
    return batch_limits(config, geometry)


def test_limits_follow_from_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """mistral-7b keeps 2 x 32 layers x 8 heads x 128 channels x 2 bytes = 128 KiB a token, 256 MiB for 2,048 of them."""
    monkeypatch.setattr(planner_engine, "available_memory", lambda: 17 * GIB)
    assert limits(mistral()) == BatchLimits(16, 4 * GIB)
    # Twice the bytes in fp32.
    assert limits(mistral(dtype="float32")) == BatchLimits(8, 4 * GIB)
    assert limits(mistral(chunk_requests=8)) == BatchLimits(8, 2 * GIB)
    assert limits(mistral(max_num_seqs=3)) == BatchLimits(3, 4 * GIB)
    assert limits(mistral(cpu_kv_cache_gib=2)) == BatchLimits(8, 2 * GIB)
    monkeypatch.setattr(planner_engine, "available_memory", lambda: GIB)
    assert limits(mistral()) == BatchLimits(4, GIB)
    monkeypatch.setattr(planner_engine, "available_memory", lambda: 4000 * GIB)
    # 512 requests of a chunk; vLLM takes no more than 256 at a time.
    assert limits(mistral()) == BatchLimits(256, 128 * GIB)


def test_on_gpus_vllm_finds_out() -> None:
    assert limits(compose(["recipe=sami_mistral"])) == BatchLimits(None, None)


def test_a_model_s_path_is_nothing_but_a_path_to_the_engine(tmp_path: Path) -> None:
    """A bracket is a pattern to vLLM, which then finds no weights."""
    for name in ("plain, é=(1)", "a[b]", "a*", "a:b", "a?"):
        model = tmp_path / name
        model.mkdir()
        (model / "config.json").write_text(name)
        with plain_path(model) as place:
            assert (place / "config.json").read_text() == name
            assert not READ_BY_VLLM & set(str(place))
        assert (model / "config.json").exists() and place.exists() == (place == model)
