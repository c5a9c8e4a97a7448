"""What is asked of a model: which queries, how often, in which order; and the file that answers are appended to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sami_nemo.config.files import parse_config
from sami_nemo.config.schema import Config
from sami_nemo.errors import ConfigError
from sami_nemo.generate.requests import plan_requests, requests_sha256, training_queries
from sami_nemo.generate.response_log import ResponseLog
from sami_nemo.queries.split import half_index, needed_groups
from sami_nemo.records import Constitution, Query, Response

BOTH = (Constitution("a", ("Be brief.",)), Constitution("b", ("Be long.",)))


def config(**generate: Any) -> Config:
    """Iterations train on 4, 8, 12, … groups."""
    return parse_config(
        {
            "name": "test",
            "recipe": "test",
            "seed": 0,
            "iterations": 3,
            "runs_dir": "runs",
            "model": {"name": "m", "architecture": "mistral", "path": "m"},
            "data": {
                "name": "d",
                "format": "queries",
                "task": "dialogue",
                "source": "q.jsonl",
                "evaluation_queries": 2,
                "max_query_tokens": 64,
            },
            "principles": {"name": "p", "source": "file", "file": "p.yaml"},
            "judge": {"name": "none", "method": "none"},
            "generate": {"max_tokens": 8, "chat_template": False, "max_model_len": 32, **generate},
            "train": {"batch_size": 2, "batches": 2, "optimizer": "adamw", "lr": 1e-4},
            "evaluate": {},
            "logger": {},
            "hardware": {"name": "local", "accelerator": "cpu", "devices_per_node": 1},
        }
    )


def queries(count: int) -> list[Query]:
    return [Query(id=str(i), text="x" * (i + 1), source="test") for i in range(count)]


def taken(config: Config, half: int, iteration: int) -> list[int]:
    return [int(query.id) for query in training_queries(config, queries(half), iteration)]


class LengthTokenizer:
    """One token per character of the query, and one more under constitution b."""

    def encode_generation_prompt(self, constitution: Constitution, query: Query) -> tuple[int, ...]:
        return tuple(range(len(query.text) + (constitution.id == "b")))


def test_halves_alternate() -> None:
    assert [half_index(iteration) for iteration in (1, 2, 3, 4)] == [0, 1, 0, 1]
    assert [needed_groups(config(), iteration) for iteration in (1, 2, 3)] == [4, 8, 12]


def test_oversampling_rounds_up() -> None:
    assert taken(config(oversample=1.5), 100, 1) == list(range(6))
    assert len(taken(config(oversample=1.26), 100, 1)) == 6  # 4 * 1.26 = 5.04


def test_a_later_iteration_takes_fresh_queries_first() -> None:
    """Iteration 3 shares its half with iteration 1 (4 queries), not with iteration 2."""
    assert taken(config(oversample=1.0), 100, 2) == list(range(8))
    assert taken(config(oversample=1.0), 100, 3) == list(range(4, 16))
    assert taken(config(oversample=1.0), 14, 3) == [*range(4, 14), 0, 1]


def test_never_more_than_the_half_and_none_twice() -> None:
    for iteration in (1, 2, 3, 5):
        assert sorted(taken(config(oversample=4.0), 7, iteration)) == list(range(7))


def test_plan_keeps_a_query_together() -> None:
    plan = plan_requests(config(), queries(2), lambda _: BOTH, LengthTokenizer())  # type: ignore[arg-type]
    assert [(r.query.id, r.constitution.id) for r in plan.requests] == [("0", "a"), ("0", "b"), ("1", "a"), ("1", "b")]
    assert plan.too_long == ()
    assert requests_sha256(plan.requests) != requests_sha256(plan.requests[::-1])


def test_a_query_too_long_under_one_constitution_is_left_out() -> None:
    """24 tokens fit beside a response of 8; query 23 has 24 under a, and 25 under b."""
    plan = plan_requests(config(), queries(25), lambda _: BOTH, LengthTokenizer())  # type: ignore[arg-type]
    assert plan.queries == 25
    assert plan.too_long == ("23", "24")
    assert len(plan.requests) == 2 * 23


def test_no_query_fits() -> None:
    with pytest.raises(ConfigError, match=r"generate.max_model_len = 9: none of 3 prompts fits"):
        plan_requests(config(max_model_len=9), queries(4)[1:], lambda _: BOTH, LengthTokenizer())  # type: ignore[arg-type]


def response(number: int) -> Response:
    return Response(Query(str(number), "Why?", "test"), BOTH[0], f"Because {number} …\u2028", (1, number), "stop", 3)


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_log_appends_whole_chunks(tmp_path: Path) -> None:
    log = ResponseLog(tmp_path / "r.jsonl", chunk=3, total=7)
    chunks = []
    while indices := log.next_chunk():
        chunks.append(list(indices))
        log.append([response(i) for i in indices])
    assert chunks == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(lines(tmp_path / "r.jsonl")) == 7
    assert ResponseLog(tmp_path / "r.jsonl", chunk=3, total=7).done == 7


@pytest.mark.parametrize("torn", ["within the last line", "after a whole line of the chunk"])
def test_log_drops_a_torn_chunk_and_nothing_else(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "r.jsonl"
    log = ResponseLog(path, chunk=3, total=7)
    log.append([response(i) for i in range(3)])
    whole = path.read_bytes()
    log.append([response(i) for i in range(3, 6)])
    written = path.read_bytes()
    first_line_of_chunk = written.index(b"\n", len(whole)) + 1
    path.write_bytes(written[:-5] if torn == "within the last line" else written[:first_line_of_chunk])
    resumed = ResponseLog(path, chunk=3, total=7)
    assert resumed.done == 3
    assert path.read_bytes() == whole
    assert list(resumed.next_chunk()) == [3, 4, 5]
