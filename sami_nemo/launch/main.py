"""Carry out a SAMI experiment.

    python launcher_scripts/main.py [recipe=NAME] [cluster=slurm] [action=prefetch|status|logs|cancel] [dry_run=true] [key=value …]

recipe=NAME     an experiment in recipes/ (default: sami_smol)
cluster=slurm   submit the stages as Slurm jobs, and return; see docs/cluster.md
action=prefetch fetch models and data, and see that they open without a network; see docs/cluster.md
action=status   how far the run has come
action=logs     the last lines of the log that says most now; stage=NAME for another
action=cancel   end what runs of it, here or on the cluster
dry_run=true    print the resolved configuration and every stage's command or job script, and do nothing
GROUP=NAME      another choice of a group in conf/: model, data, principles, generate, train, evaluate, judge, logger,
                hardware, cluster
key=value       any key of docs/configuration.md, for example train.lr=1e-5 or name=my-run

Results go to runs/<name>. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys

from sami_nemo.config.compose import Request, compose_for, split_arguments
from sami_nemo.config.files import dump_config
from sami_nemo.config.overrides import RECIPES
from sami_nemo.config.precision import this_processor
from sami_nemo.config.schema import Config
from sami_nemo.errors import EXIT_USER_ERROR, tell, user_error
from sami_nemo.launch.checks import check_config
from sami_nemo.launch.input_checks import check_inputs
from sami_nemo.launch.stages import command_line, plan

EXIT_STAGE_FAILED = 1
EXIT_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Carry out a command line; returns the exit status."""
    try:
        status = carry_out(arguments)
        # A full disk refuses what is printed here, not when Python closes it.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on, as in `main.py | head`. Python would complain once more when it closes its output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except Exception as error:
        # Where the launcher writes without naming a file, it prints.
        shown = user_error(error, os.path.realpath("/proc/self/fd/1"))
        if shown is None:
            raise
        tell(shown)
        return EXIT_USER_ERROR


def carry_out(arguments: list[str]) -> int:
    """The same, with errors raised."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        print("recipes:", ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml"))))
        return 0
    request = split_arguments(arguments)
    config, formats = compose_for(request.overrides, this_processor())
    check_config(config)
    if request.dry_run or request.action != "run":
        # Piped into `head`, for instance: end when nobody reads on.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if request.action != "run" and not request.dry_run:
        return look_after(config, request)
    check_inputs(config)
    if request.dry_run:
        print_plan(config, formats)
        return 0
    return submit_jobs(config, formats) if config.cluster.scheduler == "slurm" else run(config, formats)


def print_plan(config: Config, formats: str | None) -> None:
    """The configuration as YAML; below it the commands of all stages as comments, or their job scripts."""
    if formats:
        print(f"# {formats}")
    print(dump_config(config))
    if config.cluster.scheduler == "slurm":
        from sami_nemo.launch.slurm.script import command_of, jobs_of

        for job in jobs_of(config, plan(config)):
            print(f"---\n# {command_of(job)}\n{job.script}")
        return
    for stage in plan(config):
        print(f"# {stage.name}\n# {command_line(stage, config)}")


def look_after(config: Config, request: Request) -> int:
    """Carry out action=prefetch, status, logs or cancel. Returns the exit status."""
    if request.action == "prefetch":
        from sami_nemo.launch.prefetch import prefetch

        return prefetch(config)
    from sami_nemo.launch.control import cancel_run, print_log, print_status

    if request.action == "cancel":
        return cancel_run(config)
    return print_log(config, request.stage) if request.action == "logs" else print_status(config)


def checked_versions(config: Config, formats: str | None) -> dict[str, dict[str, str]] | None:
    """Package versions of the environments, if nothing stands against the run; else None, and all that does is printed.

    Args:
        formats: the number formats that were chosen; printed if the run can begin.
    """
    from sami_nemo.launch.claim import check_unchanged
    from sami_nemo.launch.preflight import preflight

    check_unchanged(config)
    problems, versions = preflight(config)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return None
    if formats:
        print(formats, flush=True)
    return versions


def submit_jobs(config: Config, formats: str | None) -> int:
    """Check the cluster and submit every stage that is not finished. Returns the exit status."""
    from sami_nemo.launch.claim import open_run
    from sami_nemo.launch.slurm.jobs import live_jobs, submit

    if checked_versions(config, formats) is None:
        return EXIT_USER_ERROR
    stages = plan(config)
    with open_run(config) as results:
        submitted = submit(config, results, stages)
        under_way = live_jobs(results, stages)
    for name, job in submitted.items():
        print(f"{name}: job {job}")
    if not submitted and not under_way:
        show_results(config)
        return 0
    for stage in stages:
        if stage.review and stage.name in submitted:
            print(f"stops behind {stage.name} for review of {stage.outputs[0]}; then the same command goes on")
    print(f"{len(submitted)} of {len(stages)} stages submitted; the others are finished, or with Slurm already")
    print(f"watch it with: python {shlex.join([*sys.argv, 'action=status'])} (or logs, cancel)")
    return 0


def run(config: Config, formats: str | None) -> int:
    """Check this machine and run every stage. Returns the exit status."""
    # Not needed, and not loaded, for a dry run.
    from rich.console import Console

    from sami_nemo.launch.console import LiveView, PlainView
    from sami_nemo.launch.local_runner import ReviewPending, StageError, StageFailed, run_stages

    versions = checked_versions(config, formats)
    if versions is None:
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
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from here ({config.run_dir})", file=sys.stderr)
        return EXIT_INTERRUPTED
    show_results(config)
    return 0


def show_results(config: Config) -> None:
    """Print the table of a finished run."""
    from rich.console import Console

    from sami_nemo.evaluate.metrics import write_metrics
    from sami_nemo.launch.console import print_results
    from sami_nemo.run_dir import RunDir

    results = RunDir(config.run_dir)
    if not results.metrics.exists():
        # Removed by hand: every stage is finished, so none of them writes it.
        write_metrics(config, results)
    print_results(Console(), config)
