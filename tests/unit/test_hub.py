"""Preflight's look at the hub: the cache, the offline switch, a hub that does not answer or says no. No network is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from requests import Response

from sami_nemo.config.compose import compose
from sami_nemo.launch.hub import check_hub

MODEL, DATA, INSTRUCT = (
    "mistralai/Mistral-7B-v0.1",
    "openai/summarize_from_feedback",
    "mistralai/Mistral-7B-Instruct-v0.1",
)


def refuse(error: type[Exception]) -> Any:
    def repo_info(self: HfApi, name: str, **options: Any) -> None:
        raise error("no", response=Response()) if error is not OSError else OSError("no route")

    return repo_info


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "hub home" / "hub"


def complaints(*words: str) -> dict[str, str]:
    return {problem.field: problem.remedy for problem in check_hub(compose(["recipe=sami_mistral", *words]))}


@pytest.mark.parametrize(
    ("error", "part"),
    [(GatedRepoError, "HF_TOKEN"), (RepositoryNotFoundError, "no such"), (OSError, "does not answer (OSError)")],
)
def test_each_refusal_has_its_remedy(error: type[Exception], part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "repo_info", refuse(error))
    found = complaints()
    assert set(found) == {"model.path", "data.source", "evaluate.instruct"}
    assert all(part in remedy for remedy in found.values())


def test_what_is_in_the_cache_is_not_asked_for(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(HfApi, "repo_info", refuse(AssertionError))
    (empty_cache / "models--mistralai--Mistral-7B-v0.1").mkdir(parents=True)
    found = complaints()
    assert set(found) == {"data.source", "evaluate.instruct"}
    assert "HF_HUB_OFFLINE" in found["data.source"] and str(empty_cache.parent) in found["data.source"]
    (empty_cache / "datasets--openai--summarize_from_feedback").mkdir()
    assert set(complaints("evaluate.instruct=null")) == set()


def test_files_and_prepared_models_need_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "repo_info", refuse(AssertionError))
    (tmp_path / "model").mkdir()
    assert complaints("model.path=model", "data.source=missing.jsonl", "evaluate.instruct=null") == {}
    assert check_hub(compose(["recipe=sami_smol"])) == []
