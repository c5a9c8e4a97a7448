"""Uploads to a stand-in of the hub: what arrives, what is refused, and that the token stays secret."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sami_nemo.model_card import CARD
from sami_nemo.run_dir import RunDir, read_json, sha256_file, write_json
from tests.hub_server import Hub
from tests.unit.test_model_card import VERSIONS, ready_run

REPOSITORY = Path(__file__).parents[2]
TOKEN = "hf_aSecretThatNobodyShouldSee"
FILES = {"model.safetensors": b"\0weights\xff" * 1000, "config.json": b"{}\n", CARD: b"of the export, without numbers"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    _, run = ready_run(tmp_path / "run")
    run.hf(1).mkdir(parents=True)
    for name, content in FILES.items():
        (run.hf(1) / name).write_bytes(content)
    outputs = {f"iteration_1/hf/{name}": {"sha256": hashlib.sha256(c).hexdigest()} for name, c in FILES.items()}
    outputs["iteration_1/train/steps.jsonl"] = {"sha256": sha256_file(run.train(1) / "steps.jsonl")}
    record = {"stage": "train_1", "finished": "2026-01-02", "versions": VERSIONS, "outputs": outputs}
    write_json(run.manifest("train_1"), record)
    return run


def push(
    run: RunDir, hub: Hub, *options: str, iteration: int = 1, token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(REPOSITORY / "tools" / "push_to_hub.py"), str(run.root)]
    arguments = ["--iteration", str(iteration), *(options if "--repo" in options else ("--repo", "me/model", *options))]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "HF_ENDPOINT": hub.address,
        # A token file of whoever runs the tests is not to be found.
        "HF_HOME": str(run.root.parent / "hf_home"),
        "NO_PROXY": "127.0.0.1",
    }
    if token is not None:
        environment["HF_TOKEN"] = token
    finished = subprocess.run([*script, *arguments], capture_output=True, text=True, env=environment, timeout=120)
    assert TOKEN not in finished.stdout + finished.stderr
    return finished


def refusal(run: RunDir, hub: Hub, *options: str, iteration: int = 1, token: str | None = TOKEN) -> str:
    finished = push(run, hub, *options, iteration=iteration, token=token)
    assert finished.returncode == 2 and len(finished.stderr.splitlines()) == 1, finished.stderr
    assert not hub.files
    return finished.stderr


def test_everything_arrives_in_one_commit(run: RunDir) -> None:
    with Hub() as hub:
        finished = push(run, hub, "--private")
    assert finished.returncode == 0, finished.stderr
    assert hub.created | {"private": True, "name": "model", "organization": "me"} == hub.created
    assert hub.commits == 1 and hub.files.keys() == FILES.keys()
    assert {name: hub.files[name] for name in FILES if name != CARD} == {n: c for n, c in FILES.items() if n != CARD}
    card = hub.files[CARD].decode()
    assert card.startswith("---\nbase_model: ") and "| bound (nats, at most 0.693) | 0.375 | 0.013 | 16 |" in card
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert finished.stdout.splitlines()[-1] == f"{hub.address}/me/model"


def test_a_dry_run_sends_nothing(run: RunDir) -> None:
    with Hub() as hub:
        finished = push(run, hub, "--dry-run", token=None)
    assert finished.returncode == 0, finished.stderr
    assert hub.requests == []
    assert "9,000 bytes  model.safetensors" in finished.stdout
    assert all(name in finished.stdout for name in FILES) and "me/model" in finished.stdout


def test_refusals_before_anything_is_sent(run: RunDir, tmp_path: Path) -> None:
    with Hub() as hub:
        assert "HF_TOKEN" in refusal(run, hub, token=None)
        assert "OWNER/NAME" in refusal(run, hub, "--repo", "nobody")
        assert "is not finished" in refusal(run, hub, iteration=2)
        assert "no run is there" in refusal(RunDir(tmp_path / "none"), hub)
        (run.hf(1) / "config.json").write_text("[]\n")
        assert "has changed" in refusal(run, hub)
        (run.hf(1) / "config.json").unlink()
        assert "is missing" in refusal(run, hub)
        (run.hf(1) / "config.json").write_bytes(FILES["config.json"])
        (run.hf(1) / "notes.txt").touch()
        assert "was not there" in refusal(run, hub)
        (run.hf(1) / "notes.txt").unlink()
        metrics = read_json(run.metrics)
        write_json(run.metrics, metrics | {"iterations": metrics["iterations"][:1]})
        assert "is not evaluated" in refusal(run, hub)
    assert hub.requests == []


def test_a_hub_that_refuses(run: RunDir) -> None:
    with Hub(refuse=True) as hub:
        assert "403" in refusal(run, hub)


def test_a_public_repository_is_not_taken_for_a_private_one(run: RunDir) -> None:
    with Hub(private=False) as hub:
        assert "is public" in refusal(run, hub, "--private")


def test_no_hub(run: RunDir) -> None:
    with Hub() as hub:
        pass
    assert "the upload failed" in refusal(run, hub)
