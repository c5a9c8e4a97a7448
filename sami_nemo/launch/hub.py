"""Whether what a run takes from the Hugging Face hub is in the cache, or can be fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from sami_nemo.base_model.locate import HUB_NAME
from sami_nemo.config.schema import Config
from sami_nemo.errors import CheckpointError, DataError, UserError
from sami_nemo.launch.stages import on_hub

# The hub answers in a second or not at all.
TIMEOUT_SECONDS = 10
Kind = Literal["model", "dataset"]


def hub_cache() -> Path:
    """Where Hugging Face's libraries keep what they fetch."""
    return Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))


def absent_models(config: Config) -> dict[str, str]:
    """Models that the run takes as they are and that are no directories here, by their key: hub names, or mistakes."""
    models = {
        "model.path": config.model.path if config.model.prepare == "none" else None,
        "evaluate.instruct": config.evaluate.instruct,
        "principles.model": config.principles.model if config.principles.source == "local" else None,
    }
    return {field: name for field, name in models.items() if name is not None and not Path(name).is_dir()}


def check_hub(config: Config) -> list[UserError]:
    """Models and data that are named by a hub name are within reach."""
    problems: list[UserError] = []
    for field, name in absent_models(config).items():
        if HUB_NAME.fullmatch(name) and (complaint := _complaint(name, "model")) is not None:
            problems.append(CheckpointError(field, name, complaint))
    source = config.data.source
    if HUB_NAME.fullmatch(source) and on_hub(source) and (complaint := _complaint(source, "dataset")) is not None:
        problems.append(DataError("data.source", source, complaint))
    return problems


def _complaint(name: str, kind: Kind) -> str | None:
    """Why `name` cannot be had; None if it can."""
    if (hub_cache() / "hub" / f"{kind}s--{name.replace('/', '--')}").is_dir():
        return None
    where = f"not in the cache ({hub_cache()}; HF_HOME)"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return f"{where}, and HF_HUB_OFFLINE is set; fetch it with `hf download {name}` where there is a network"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT_SECONDS)
    except GatedRepoError:
        return "its licence is to be accepted on the hub first; then set HF_TOKEN to a token of that account"
    except RepositoryNotFoundError:
        return f"the hub has no such {kind}, or HF_TOKEN may not see it; correct the name"
    except Exception as error:
        # Whatever a network, a proxy or the hub may do.
        return f"{where}, and the hub does not answer ({type(error).__name__}); fetch it where there is a network"
    return None
