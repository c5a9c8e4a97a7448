"""Where the hub's cache is, and preflight's look at what is in it and at the hub; a stand-in of it answers on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.numpy

from sami_nemo.config.compose import compose
from sami_nemo.hub import cache_directory, home_directory, is_offline
from sami_nemo.launch.hub import check_hub, files_of, needs_of
from tests.checkpoints import weights
from tests.hub_server import Hub, Stored
from tests.unit.hub_contents import INSTRUCT, MODEL, NO_NETWORK, TLDR, checkpoint, tldr, use
from tests.unit.test_bad_commands import MISTRAL
from tests.unit.test_hub_data import hub as empty_hub  # noqa: F401
from tests.unit.test_hub_data import rows

VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "/shared/hub"},
        {"HF_HOME": "~/x"},
        {"HF_HOME": "$PLACE/x"},
        {"HF_HUB_CACHE": "/shared/cache"},
        {"HF_HUB_CACHE": "~/cache", "HF_HOME": "/shared/hub", "HUGGINGFACE_HUB_CACHE": "/older"},
        {"HUGGINGFACE_HUB_CACHE": "/older"},
        {"HUGGINGFACE_HUB_CACHE": "~/older", "HF_HOME": "/shared/hub"},
        {"XDG_CACHE_HOME": "/caches"},
        {"XDG_CACHE_HOME": "~/caches", "HF_HOME": "~/x"},
        {"XDG_CACHE_HOME": "$PLACE"},
        {"HF_HOME": "relative"},
        {"HF_HUB_OFFLINE": "on"},
        {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"},
        {"TRANSFORMERS_OFFLINE": "yes"},
    ],
    ids=lambda variables: " ".join(f"{name}={value}" for name, value in variables.items()),
)  # fmt: skip
def test_the_cache_is_where_the_library_finds_it(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/of somebody")
    monkeypatch.setenv("PLACE", "/a place")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    script = "from huggingface_hub.constants import *; print(HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    home, cache, offline = done.stdout.splitlines()
    assert (home_directory(), cache_directory(), str(is_offline())) == (
        Path(home).absolute(),
        Path(cache).absolute(),
        offline,
    )
    # The same of other variables than this process's.
    assert cache_directory(variables | {"HOME": os.environ["HOME"]}) == Path(cache).absolute()


@pytest.fixture
def hub(empty_hub: Hub) -> Iterator[Hub]:  # noqa: F811
    empty_hub.stored = {f"models/{name}": Stored(main=checkpoint()) for name in (MODEL, INSTRUCT)}
    empty_hub.stored[f"datasets/{TLDR}"] = tldr()
    return empty_hub


def complaints(*words: str) -> dict[str, str]:
    return {problem.field: problem.remedy for problem in check_hub(compose(["recipe=sami_mistral", *words]))}


def prefetch(*words: str) -> None:
    config = compose(["recipe=sami_mistral", *words])
    for need in needs_of(config):
        files_of(config, need, fetch=True)


def test_a_writer_that_a_stage_serves_is_needed_and_one_behind_an_address_is_not() -> None:
    def fields(*words: str) -> list[str]:
        return [need.field for need in needs_of(compose(["recipe=sami_mistral", "data=sample", *words]))]

    words = ("principles.model=me/writer", "model=tiny_random")
    assert fields("principles=local_writer", *words) == ["evaluate.instruct", "principles.model"]
    assert fields("principles=endpoint_writer", *words) == ["evaluate.instruct"]


def test_what_can_be_fetched_is_in_order(hub: Hub, tmp_path: Path) -> None:
    assert complaints() == {}
    assert not (tmp_path / "hf").exists()


def test_each_refusal_has_its_remedy(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in hub.stored:
        hub.stored[name].gated = "hf_good"
    found = complaints()
    assert set(found) == {"model.path", "data.source", "evaluate.instruct"}
    assert all("HF_TOKEN" in remedy for remedy in found.values())
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert complaints() == {}
    hub.stored = {}
    assert all("no such" in remedy for remedy in complaints().values()) and len(complaints()) == 3
    use(NO_NETWORK, monkeypatch)
    assert all("does not answer (ConnectionError)" in remedy for remedy in complaints().values())


def test_what_the_hub_has_not_of_it(hub: Hub) -> None:
    assert "no subset nothing" in complaints("data.subsets=[nothing]")["data.source"]
    assert "no split nothing" in complaints("data.split=nothing")["data.source"]
    hub.stored[f"models/{MODEL}"] = Stored(main={"config.json": b"{}", "pytorch_model.bin": b""})
    assert "no weights as *.safetensors" in complaints()["model.path"]


def test_a_folder_is_not_enough(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `hf download` makes of the data set's main branch, and what is left of a download that was broken off."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache = tmp_path / "hf" / "hub"
    for name in ("datasets--openai--summarize_from_feedback", "models--mistralai--Mistral-7B-v0.1"):
        (cache / name / "refs").mkdir(parents=True)
        (cache / name / "refs" / "main").write_text("0" * 40)
        (cache / name / "snapshots" / ("0" * 40)).mkdir(parents=True)
        (cache / name / "snapshots" / ("0" * 40) / "README.md").touch()
    found = complaints()
    assert set(found) == {"model.path", "data.source", "evaluate.instruct"}
    assert all(str(cache) in remedy and "HF_HUB_OFFLINE" in remedy for remedy in found.values())
    assert all("action=prefetch" in remedy for remedy in found.values())


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "no network"])
def test_what_is_in_the_cache_is_opened_without_a_network(
    offline: bool, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefetch()
    asked = len(hub.requests)
    assert complaints() == {} and len(hub.requests) == asked
    use(NO_NETWORK, monkeypatch)
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert complaints() == complaints("cluster=slurm") == {}
    assert complaints("data.split=validation").keys() == {"data.source"}
    shard = next((tmp_path / "hf").rglob("0001.parquet"))
    content = shard.read_bytes()
    shard.resolve().write_bytes(content[:-9])
    assert "is not Parquet" in complaints()["data.source"]
    next((tmp_path / "hf").rglob("config.json")).resolve().write_text("{")
    assert len(complaints()) >= 2


def test_missing_shards_of_weights_are_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that another program fetched and did not finish."""
    shards = {f"model-0000{n}-of-00003.safetensors": file for n, file in enumerate(weights(MISTRAL, 3), start=1)}
    names = {tensor: name for name, file in shards.items() for tensor in safetensors.numpy.load(file)}
    index = json.dumps({"weight_map": names}).encode()
    files = checkpoint() | shards | {"model.safetensors.index.json": index}
    del files["model.safetensors"]
    hub.stored[f"models/{MODEL}"] = Stored(main=files)
    ignored = ["*-00002-*", "*-00003-*"]
    huggingface_hub.snapshot_download(MODEL, cache_dir=tmp_path / "hf" / "hub", ignore_patterns=ignored)
    assert "the index names it, and it is not there" in complaints()["model.path"]
    prefetch()
    assert complaints() == {}


def test_the_cluster_s_file_may_say_where_and_whether(hub: Hub, tmp_path: Path) -> None:
    place = f"cluster.default.environment.HF_HOME={tmp_path}/shared"
    prefetch("cluster=slurm", place)
    offline = "cluster.default.environment.HF_HUB_OFFLINE=1"
    assert complaints("cluster=slurm", place, offline) == {}
    found = complaints("cluster=slurm", offline)
    assert len(found) == 3 and all("HF_HUB_OFFLINE" in remedy for remedy in found.values())


def test_a_wrong_field_is_seen_in_the_first_rows(hub: Hub) -> None:
    # That the first rows hold no query is no fault by itself.
    hub.stored["datasets/me/data"] = Stored(main={"train.jsonl": rows(*[""] * 150, "a", "b")})
    words = ("data=file", "data.source=me/data", "data.task=summary")
    prefetch(*words)
    assert complaints(*words) == {}
    (problem,) = check_hub(compose(["recipe=sami_mistral", *words, "data.field=question"]))
    assert str(problem).startswith("data.field = question: no row of me/data has this; they have query")


def test_files_and_prepared_models_need_no_hub(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert complaints("model.path=model", "data.source=missing.jsonl", "evaluate.instruct=null") == {}
    assert check_hub(compose(["recipe=sami_smol"])) == []
    assert hub.requests == []
