"""action=prefetch against a stand-in of the hub: what it fetches is what a run reads without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sami_nemo.launch.stages import PYTHON_VARIABLES
from tests.hub_server import Hub, Stored
from tests.unit.hub_contents import INSTRUCT, MODEL, NO_NETWORK, TLDR, checkpoint, hh_rlhf, tldr

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "launcher_scripts" / "main.py"
PATIENCE = 300


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.stored = {f"models/{MODEL}": Stored(main=checkpoint()), f"models/{INSTRUCT}": Stored(main=checkpoint())}
        hub.stored |= {f"datasets/{TLDR}": tldr(), "datasets/Anthropic/hh-rlhf": hh_rlhf()}
        yield hub


def prefetch(place: Path, hub: Hub | None, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """action=prefetch in `place`, with the hub's cache there; without a hub nothing answers."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {"HF_HOME": str(place / "hf"), "HF_ENDPOINT": hub.address if hub else NO_NETWORK, "NO_PROXY": "*"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", PYTHON_VARIABLES["train"]: sys.executable} | variables
    command = [sys.executable, str(MAIN), *words, "action=prefetch"]
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def downloads(hub: Hub) -> list[str]:
    return [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]


@pytest.mark.parametrize("words", [(), ("cluster=slurm",)], ids=["local", "slurm"])
def test_everything_of_a_recipe_is_fetched_and_opened(hub: Hub, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = prefetch(tmp_path, hub, "recipe=sami_mistral", *words)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"model.path = {MODEL}",
        f"evaluate.instruct = {INSTRUCT}",
        f"data.source = {TLDR}",
    ]
    assert all(f"opened offline in {tmp_path}/hf/hub" in line for line in lines)
    assert "2 files" in lines[2]
    # Neither the formats that are pickle, nor scripts, nor what was not asked for.
    assert not [name for name in downloads(hub) if name.endswith((".bin", ".py")) or "axis" in name or "valid" in name]
    assert not (tmp_path / "runs").exists()

    # Again, where nothing answers: it is all there.
    again = prefetch(tmp_path, None, "recipe=sami_mistral", *words)
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")


def test_what_was_broken_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    """And counts as missing until then, also where only some files of several have arrived."""
    hub.stored[f"datasets/{TLDR}"] = tldr(stops_at=("comparisons/train/0001.parquet",))
    cut = Stored(main=checkpoint(), stops_at=("model.safetensors",))
    hub.stored[f"models/{MODEL}"] = cut
    hub.stored.pop(f"models/{INSTRUCT}")
    done = prefetch(tmp_path, hub, "recipe=sami_mistral")
    assert done.returncode == 2
    fields = [line.partition(" ")[0] for line in done.stderr.splitlines()]
    assert "evaluate.instruct" in fields and set(fields) <= {"model.path", "evaluate.instruct", "data.source"}
    assert (
        f"{INSTRUCT}: neither a directory nor available" in done.stderr and "the hub has no such model" in done.stderr
    )
    offline = prefetch(tmp_path, None, "recipe=sami_mistral", "evaluate.instruct=null", HF_HUB_OFFLINE="1")
    assert len(offline.stderr.splitlines()) == len([field for field in fields if field != "evaluate.instruct"])

    before = len(downloads(hub))
    whole = prefetch(tmp_path, hub, "recipe=sami_mistral", "evaluate.instruct=null")
    assert (whole.returncode, whole.stderr) == (0, "")
    # Only what was missing.
    assert all(name.endswith(("0001.parquet", "model.safetensors")) for name in downloads(hub)[before:])
    weights = next((tmp_path / "hf" / "hub").glob("models--*/snapshots/*/model.safetensors"))
    assert weights.read_bytes() == checkpoint()["model.safetensors"]


def test_a_licence_that_was_not_accepted(hub: Hub, tmp_path: Path) -> None:
    hub.stored[f"models/{MODEL}"] = Stored(gated="hf_good", main=checkpoint())
    words = ("recipe=sami_mistral_hh", "evaluate.instruct=null", "data=sample", "data.evaluation_queries=9")
    done = prefetch(tmp_path, hub, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"model.path = {MODEL}:") and "its licence is to be accepted" in done.stderr
    assert done.stdout.startswith("data.source = sami_nemo/queries/sample_queries.jsonl: 1 file, ")
    assert prefetch(tmp_path, hub, *words, HF_TOKEN="hf_good").returncode == 0


def test_the_stage_reads_what_was_fetched_without_a_network(hub: Hub, tmp_path: Path) -> None:
    assert prefetch(tmp_path, hub, "recipe=sami_mistral_hh", "evaluate.instruct=null").returncode == 0
    script = """
from sami_nemo.config.compose import compose
from sami_nemo.base_model.prepare import ensure_model
from sami_nemo.queries.loaders import load_queries
for words in (["data=hh_rlhf"], ["data=hh_rlhf", "data.split=test", "data.subsets=[harmless-base]"]):
    try:
        print([(query.id, query.text) for query in load_queries(compose(words).data, len)[0]])
    except Exception as error:
        print(error)
"""
    variables = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": NO_NETWORK, "PYTHONPATH": str(ROOT)}
    for offline in ({"HF_HUB_OFFLINE": "1"}, {}):
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=os.environ | variables | offline, capture_output=True, text=True, check=True)
        fetched, other = done.stdout.splitlines()
        assert fetched == str([("helpful-base:1", "helpful-base train?"), ("harmless-base:1", "harmless-base train?")])
        assert other.startswith("data.source = Anthropic/hh-rlhf:") and "1 of its 1 files are not in the cache" in other


def test_either_environment_fetches_a_model_and_reads_what_the_other_fetched(
    hub: Hub, tmp_path: Path, generate_python: Path
) -> None:
    """Their versions of the hub's library differ; the principles' writer is fetched by the one of vLLM."""
    script = "import sys; from sami_nemo.base_model.locate import download, locate\n"
    script += "print({'fetch': download, 'open': locate}[sys.argv[1]](sys.argv[2]))"

    def carry_out(python: Path | str, word: str, name: str, address: str) -> str:
        variables = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address, "NO_PROXY": "*", "PYTHONPATH": str(ROOT)}
        command = [str(python), "-c", script, word, name]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name, python, other in ((MODEL, sys.executable, generate_python), (INSTRUCT, generate_python, sys.executable)):
        where = carry_out(python, "fetch", name, hub.address)
        assert carry_out(other, "open", name, NO_NETWORK) == carry_out(other, "fetch", name, NO_NETWORK) == where
        assert {path.name for path in Path(where.strip()).iterdir()} == checkpoint().keys() - {"pytorch_model.bin"}


def test_the_cache_is_the_one_that_jobs_are_given(hub: Hub, tmp_path: Path) -> None:
    words = ("recipe=sami_mistral", "evaluate.instruct=null", "cluster=slurm")
    done = prefetch(tmp_path, hub, *words, f"cluster.default.environment.HF_HOME={tmp_path}/shared")
    assert done.returncode == 0 and f"opened offline in {tmp_path}/shared/hub" in done.stdout, done.stderr
    assert not (tmp_path / "hf" / "hub").exists()
    older = prefetch(tmp_path, hub, *words, HUGGINGFACE_HUB_CACHE=str(tmp_path / "older"))
    assert f"opened offline in {tmp_path}/older" in older.stdout


def test_a_launcher_without_a_reader_of_parquet_sees_whole_files(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "blocker").mkdir()
    blocker = "import importlib.util as u\nfind = u.find_spec\n"
    blocker += "u.find_spec = lambda name, *more: None if name == 'pyarrow' else find(name, *more)\n"
    (tmp_path / "blocker" / "sitecustomize.py").write_text(blocker)
    words = ("recipe=sami_mistral", "model=tiny_random", "evaluate.instruct=null", "cluster=slurm")
    variables = {"PYTHONPATH": str(tmp_path / "blocker"), PYTHON_VARIABLES["train"]: "/nowhere/python"}
    done = prefetch(tmp_path, hub, *words, **variables)
    assert done.returncode == 0, done.stderr
    made, data = done.stdout.splitlines()
    assert made.startswith("model.path = ") and made.endswith("it needs no network")
    assert "whole (no library reads Parquet here)" in data


def test_a_model_that_this_project_makes_is_made(tmp_path: Path) -> None:
    for _ in range(2):
        done = prefetch(tmp_path, None, "recipe=sami_debug")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].endswith(" made here")
