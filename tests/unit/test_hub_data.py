"""Data sets of a hub: which files hold a subset and a split, however the owner has named them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sami_nemo.errors import DataError
from sami_nemo.queries.loaders import load_queries
from tests.hub_server import Hub, Stored
from tests.unit.hub_contents import NO_NETWORK, hh_rlhf, jsonl, parquet, tldr, use
from tests.unit.test_queries import config, words


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "*")
    with Hub() as hub:
        use(hub.address, monkeypatch)
        yield hub


def rows(*texts: str) -> bytes:
    return jsonl(*({"query": text} for text in texts))


def table(*texts: str) -> bytes:
    return parquet(*({"query": text} for text in texts))


def texts(**changes: Any) -> list[str]:
    return [query.text for query in load_queries(config("me/data", **changes), words)[0]]


def refusal(source: str = "me/data", **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_queries(config(source, **changes), words)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"data.source = {source}: ")
    return str(caught.value)


# Files with what is read of them for `changes`: a, then b.
LAYOUTS: list[tuple[dict[str, bytes], dict[str, Any]]] = [
    ({"train.jsonl": rows("a", "b"), "test.jsonl": rows("no")}, {}),
    ({"my_training.jsonl.gz": gzip.compress(rows("a", "b")), "README.md": b"", "LICENSE": b""}, {}),
    ({"data/train-00000-of-00002.parquet": table("a"), "data/train-00001-of-00002.parquet": table("b"),
      "data/test-00000-of-00001.parquet": table("no")}, {}),
    ({"data/train-00000-of-00001-9ef3b2c4d5e6f708.parquet": table("a", "b")}, {}),
    ({"data/test_sft-00000-of-00001.parquet": table("no"), "data/train_sft-00000-of-00001.parquet": table("a", "b")},
     {"split": "train_sft"}),
    ({"en/train-00000-of-00001.parquet": table("a", "b"), "de/train-00000-of-00001.parquet": table("no")},
     {"subsets": ["en"]}),
    ({"en/train.jsonl": rows("b"), "de/train.jsonl": rows("a"), "fr/train.jsonl": rows("no")}, {"subsets": ["de", "en"]}),
    ({"en/train.jsonl": rows("b"), "de/train.jsonl": rows("a")}, {}),
    ({"queries.json": b'[{"query": "a"}, {"query": "b"}]', "dataset_infos.json": b"{}", ".cache/train.json": b"{}"}, {}),
    ({"queries.csv": b"query\na\nb\n"}, {}),
    ({"validation/part1.jsonl": rows("a"), "validation/part2.jsonl": rows("b"), "train/part1.jsonl": rows("no")},
     {"split": "validation"}),
    ({"dev.jsonl": rows("a", "b"), "train.jsonl": rows("no")}, {"split": "validation"}),
    ({"dev.jsonl": rows("a", "b"), "train.jsonl": rows("no")}, {"split": "dev"}),
    ({"prompts.jsonl": rows("a", "b"), "answers.jsonl": rows("no")}, {"split": "prompts"}),
    # Several formats hold the same rows.
    ({"train.parquet": table("a", "b"), "train.jsonl": rows("no")}, {}),
    # A subset's name may hold the word of a split, other names only letters of one.
    ({"eval-hard/rows.jsonl": rows("a", "b"), "easy/rows.jsonl": rows("no")}, {"subsets": ["eval-hard"]}),
    ({"constrained.jsonl": rows("a"), "latest.jsonl": rows("b")}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("files", "changes"), LAYOUTS)
def test_layouts(files: dict[str, bytes], changes: dict[str, Any], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stored["datasets/me/data"] = Stored(main=files)
    assert texts(**changes) == ["a", "b"]
    use(NO_NETWORK, monkeypatch)
    assert texts(**changes) == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"split": "test"}, "it has no split test (data.split); there are train, validation"),
        ({"split": "train[:10]"}, "it has no split train[:10] (data.split); there are train, validation"),
        ({"subsets": ["en"]}, "it has no directory en (data.subsets); there are data"),
    ],
)
def test_what_a_data_set_has_not(changes: dict[str, Any], part: str, hub: Hub) -> None:
    files = {"data/train.jsonl": rows("a"), "data/valid.jsonl": rows("b")}
    hub.stored["datasets/me/data"] = Stored(main=files)
    assert part in refusal(**changes)


def test_formats_that_are_not_read(hub: Hub) -> None:
    hub.stored["datasets/me/data"] = Stored(main={"train.arrow": b"", "train.txt": b""})
    assert "it holds no .jsonl" in refusal() and "the hub has no branch refs/convert/parquet" in refusal()


def test_the_hubs_copy_serves_where_names_do_not_tell(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = {f"{subset}/train/0000.parquet": table(subset, "b") for subset in ("a", "c")}
    hub.stored["datasets/me/data"] = Stored(main={"all.tar": b""}, refs__convert__parquet=copy)
    assert texts(subsets=["a"]) == ["a", "b"]
    assert "its Parquet copy has several subsets; set data.subsets; there are a, c" in refusal()
    assert "its Parquet copy has no subset d (data.subsets); there are a, c" in refusal(subsets=["d"])
    assert "its Parquet copy has no split test (data.split); there are train" in refusal(subsets=["a"], split="test")
    former = {"a/data-train-00000-of-00002.parquet": table("a"), "a/data-train-00001-of-00002.parquet": table("b")}
    former["a/data-test.parquet"] = table("no")
    hub.stored["datasets/me/former"] = Stored(main={"former.py": b""}, refs__convert__parquet=former)
    queries, _ = load_queries(config("me/former"), words)
    assert [query.text for query in queries] == ["a", "b"]
    hub.stored["datasets/me/data"] = Stored(main={}, refs__convert__parquet={"default/partial-train/0000.parquet": b""})
    assert "no split train (data.split); there are partial-train" in refusal(subsets=["default"])


def test_data_sets_of_the_paper(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stored = {"datasets/openai/summarize_from_feedback": tldr(), "datasets/Anthropic/hh-rlhf": hh_rlhf()}

    def found() -> list[list[tuple[str, str]]]:
        posts = config("openai/summarize_from_feedback", format="tldr", subsets=["comparisons"])
        talks = config("Anthropic/hh-rlhf", format="hh_rlhf", subsets=["helpful-base", "harmless-base"])
        return [[(query.id, query.text) for query in load_queries(data, words)[0]] for data in (posts, talks)]

    expected = [
        [(f"comparisons:{n}", f"{text} post.") for n, text in enumerate(("first", "second", "third", "fourth"), 1)],
        [("helpful-base:1", "helpful-base train?"), ("harmless-base:1", "harmless-base train?")],
    ]
    assert found() == expected
    use(NO_NETWORK, monkeypatch)
    assert found() == expected
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found() == expected


def test_why_a_data_set_cannot_be_had(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the hub has no such dataset" in refusal("me/nothing")
    assert "the hub has no such dataset" in refusal("nothing")
    files = {"train.jsonl": rows("a"), "train-2.jsonl": rows("b")}
    for status, part in ((503, "the hub refuses (503"), (429, "the hub refuses (429")):
        hub.stored["datasets/me/data"] = Stored(main=files, status=status)
        assert part in refusal()
    hub.stored["datasets/me/data"] = Stored(main=files, missing=("train-2.jsonl",))
    assert "the hub refuses (404" in refusal()
    hub.stored["datasets/me/data"] = Stored(main=files, gated="hf_good")
    assert "its licence is to be accepted" in refusal()
    use(NO_NETWORK, monkeypatch)
    assert "the hub does not answer (ConnectionError)" in refusal() and "action=prefetch" in refusal()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refusal() and "action=prefetch" in refusal()


def test_a_file_that_disappeared_is_missed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several shards: the others are not taken for the whole."""
    files = {f"train-0000{n}-of-00002.parquet": table(text) for n, text in enumerate("ab")}
    hub.stored["datasets/me/data"] = Stored(main=files)
    assert texts() == ["a", "b"]
    use(NO_NETWORK, monkeypatch)
    shard = next((tmp_path / "hf").rglob("train-00001-of-00002.parquet"))
    shard.resolve().unlink()
    assert "1 of its 2 files are not in the cache" in refusal()
    shard.unlink()
    assert "1 of its 2 files are not in the cache" in refusal()
    use(hub.address, monkeypatch)
    assert texts() == ["a", "b"]


def test_what_another_program_fetched_is_read(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hf download` keeps no list of files; what it broke off leaves a trace."""
    hub.stored["datasets/me/data"] = Stored(main={"train.jsonl": rows("a", "b"), "test.jsonl": rows("no")})
    huggingface_hub.snapshot_download("me/data", repo_type="dataset", cache_dir=tmp_path / "hf" / "hub")
    use(NO_NETWORK, monkeypatch)
    assert texts() == ["a", "b"]
    use(hub.address, monkeypatch)
    assert texts() == ["a", "b"]
    assert (tmp_path / "hf" / "hub" / "datasets--me--data" / "sami_nemo_listings").is_dir()


def test_what_another_program_left_is_completed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stored["datasets/me/data"] = Stored(main={"train-1.jsonl": rows("a"), "train-2.jsonl": rows("b")})
    cache = tmp_path / "hf" / "hub"
    options = {"repo_type": "dataset", "cache_dir": cache, "allow_patterns": ["train-1*"]}
    huggingface_hub.snapshot_download("me/data", **options)
    (cache / "datasets--me--data" / "blobs" / "abc.incomplete").touch()
    use(NO_NETWORK, monkeypatch)
    assert "the hub does not answer" in refusal()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refusal()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    use(hub.address, monkeypatch)
    assert texts() == ["a", "b"]
