"""Experiment trackers of a training stage, by configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sami_nemo.config.schema import Config


def build_loggers(config: Config, directory: Path, iteration: int) -> list[Any]:
    """Lightning loggers for one iteration; used on rank 0 only."""
    name = f"{config.name}/iteration_{iteration}"
    loggers: list[Any] = []
    if config.logger.tensorboard:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(directory, name="tensorboard", version=""))
    if config.logger.wandb_project:
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(project=config.logger.wandb_project, name=name, save_dir=directory))
    if config.logger.mlflow_tracking_uri:
        from lightning.pytorch.loggers import MLFlowLogger

        loggers.append(
            MLFlowLogger(experiment_name=config.name, run_name=name, tracking_uri=config.logger.mlflow_tracking_uri)
        )
    return loggers
