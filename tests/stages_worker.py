"""Carries out stages of several runs in one process: imports take longer than the stage of a tiny model.

    stages_worker.py MODULE[,MODULE…] ITERATION RUN…

What a stage writes goes to its place, as after a stage of the launcher.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from sami_nemo.config.files import load_config
from sami_nemo.run_dir import RunDir, commit


def main(modules: list[str], iteration: int, runs: list[RunDir]) -> None:
    for module in modules:
        stage = importlib.import_module(module)
        for run in runs:
            stage.main(load_config(run.config), run, iteration)
            for unfinished in run.iteration(iteration).glob("*.partial"):
                commit(unfinished.with_suffix(""))


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), [RunDir(Path(root)) for root in sys.argv[3:]])
