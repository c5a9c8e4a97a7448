"""What every stage's process does before and after its own work."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sami_nemo.config.files import load_config
from sami_nemo.errors import EXIT_USER_ERROR, tell, user_error
from sami_nemo.progress import report_error, report_phase
from sami_nemo.run_dir import INSTRUCT, RunDir
from sami_nemo.versions import Environment, check_versions


def is_writer() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return os.environ.get("RANK", "0") == "0"


def _iteration(text: str) -> int:
    return INSTRUCT if text == "instruct" else int(text)


def run(main: Callable[..., None], environment: Environment) -> None:
    """Run a stage: `python -m MODULE --run-dir DIR [--iteration N|instruct] [--engine K]`.

    Args:
        main: the stage's work: a function of configuration, run directory and iteration, and of `engine=` if it is one
            of several.
        environment: "train" or "generate"; the packages of this environment are checked first.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--iteration", type=_iteration, default=0)
    parser.add_argument("--engine", type=int)
    arguments = parser.parse_args()
    engine = {} if arguments.engine is None else {"engine": arguments.engine}
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        check_versions(environment)
        config = load_config(arguments.run_dir / "config.yaml")
        if is_writer():
            report_phase("work")
        main(config, RunDir(arguments.run_dir), arguments.iteration, **engine)
    except Exception as error:
        shown = user_error(error, arguments.run_dir)
        if shown is None:
            raise
        # From every process of a distributed stage: the others may be stopped before they come to it. The launcher
        # shows the first.
        report_error(str(shown))
        tell(shown)
        sys.exit(EXIT_USER_ERROR)
