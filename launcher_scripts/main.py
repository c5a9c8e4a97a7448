"""Carry out a SAMI experiment.

    python launcher_scripts/main.py [recipe=NAME] [dry_run=true] [key=value …]

recipe=NAME     an experiment in recipes/ (default: sami_smol)
dry_run=true    print the resolved configuration and every stage's command, and do nothing
GROUP=NAME      another choice of a group in conf/: model, data, principles, generate, train, evaluate, judge, logger,
                hardware, cluster
key=value       any field of sami_nemo/config.py, for example train.lr=1e-5 or name=my-run

Results go to runs/<name>. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAIN_PYTHON = ROOT / ".venv" / "train" / "bin" / "python"
# The repository is found from any working directory.
sys.path.insert(0, str(ROOT))

if importlib.util.find_spec("hydra") is None:
    # Another Python than the environment's, the system's for instance: go on with the right one.
    if TRAIN_PYTHON.exists() and Path(sys.executable) != TRAIN_PYTHON:
        os.execv(TRAIN_PYTHON, [str(TRAIN_PYTHON), *sys.orig_argv[1:]])
    print("hydra-core = (not installed): run `make setup`, then .venv/train/bin/python", file=sys.stderr)
    sys.exit(2)

from sami_nemo.compose import compose, split_arguments  # noqa: E402
from sami_nemo.config import Config, dump_config  # noqa: E402
from sami_nemo.config_checks import check_config  # noqa: E402
from sami_nemo.errors import EXIT_USER_ERROR, UserError  # noqa: E402
from sami_nemo.launch.stages import command_line, plan  # noqa: E402

EXIT_STAGE_FAILED = 1
EXIT_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        print("recipes:", ", ".join(sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))))
        return 0
    try:
        overrides, dry_run = split_arguments(arguments)
        config = compose(overrides)
        check_config(config)
        if dry_run:
            # Piped into `head`, for instance: end when nobody reads on.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            print_plan(config)
            return 0
        return run(config)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def print_plan(config: Config) -> None:
    """The configuration as YAML, and the commands of all stages as comments below it."""
    print(dump_config(config))
    for stage in plan(config):
        print(f"# {stage.name}\n# {command_line(stage, config)}")


def run(config: Config) -> int:
    """Check this machine and run every stage. Returns the exit status."""
    # Not needed, and not loaded, for a dry run.
    from rich.console import Console

    from sami_nemo.evaluate.metrics import write_metrics
    from sami_nemo.launch.console import LiveView, PlainView, print_results
    from sami_nemo.launch.local_runner import ReviewPending, StageError, StageFailed, check_unchanged, run_stages
    from sami_nemo.launch.preflight import preflight
    from sami_nemo.run_dir import RunDir

    check_unchanged(config)
    problems, versions = preflight(config)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return EXIT_USER_ERROR

    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup ignores SIGHUP, so that a run outlives its terminal.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    console, stages = Console(), plan(config)
    try:
        if console.is_terminal:
            with LiveView(console, stages) as view:
                run_stages(config, stages, view, versions)
        else:
            run_stages(config, stages, PlainView(console), versions)
    except ReviewPending as pending:
        print(pending)
        return 0
    except StageError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except StageFailed as error:
        print(error, file=sys.stderr)
        return EXIT_STAGE_FAILED
    except BrokenPipeError:
        # Nobody reads on, as in `main.py | head`. Python would complain once more when it closes its output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from here ({config.run_dir})", file=sys.stderr)
        return EXIT_INTERRUPTED
    results = RunDir(config.run_dir)
    if not results.metrics.exists():
        # Removed by hand: every stage is finished, so none of them writes it.
        write_metrics(config, results)
    print_results(console, config)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
