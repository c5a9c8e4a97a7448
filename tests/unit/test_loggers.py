"""Experiment trackers, with the real packages; those that need an account or a server work offline here."""

from __future__ import annotations

from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.model.loggers import build_loggers


def log_a_loss(overrides: list[str], directory: Path) -> None:
    loggers = build_loggers(compose(overrides), directory, iteration=1)
    for logger in loggers:
        logger.log_metrics({"loss": 0.5}, step=1)
        logger.finalize("success")


def test_tensorboard_is_the_default(tmp_path: Path) -> None:
    log_a_loss([], tmp_path)
    assert list(tmp_path.glob("tensorboard/events.out.tfevents.*"))
    assert len(list(tmp_path.iterdir())) == 1


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_a_loss(["logger=wandb"], tmp_path)
    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    # The group's address is below the directory that the launcher is called in.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    log_a_loss(["logger=mlflow"], tmp_path)
    assert (tmp_path / "runs" / "mlflow.db").stat().st_size > 0
