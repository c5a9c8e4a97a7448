"""What a run needs before it is started: memory, time, disk and traffic, and the layouts that fit.

.venv/train/bin/python tools/plan.py recipe=NAME [key=value ...] [--json] [--prompt-tokens P --response-tokens R]
.venv/train/bin/python tools/plan.py --scaling

Memory is that of the longest sequences that the settings allow. Times are for the same lengths, which is their upper
limit, or for --prompt-tokens and --response-tokens. docs/scaling.md says what is counted and what has been checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.compose import compose
from sami_nemo.errors import EXIT_USER_ERROR, ConfigError, UserError
from sami_nemo.launch.checks import check_config
from sami_nemo.planner.batch import longest_batch
from sami_nemo.planner.report import plan, render
from sami_nemo.planner.scaling import scaling_table


def answer(arguments: argparse.Namespace) -> str:
    """What to print.

    Raises:
        ConfigError: settings that cannot work, or a model of unknown geometry.
    """
    if arguments.scaling:
        return scaling_table()
    config = compose(arguments.overrides)
    check_config(config)
    geometry = base_geometry(config.model)
    if geometry is None:
        remedy = "its geometry is not known; give a directory with config.json, or model.num_layers and the other sizes"
        raise ConfigError("model.path", config.model.path, remedy)
    longest = longest_batch(config)
    batch = replace(
        longest,
        prompt=arguments.prompt_tokens or longest.prompt,
        response=arguments.response_tokens or longest.response,
    )
    facts = plan(config, geometry, batch)
    return json.dumps(facts, indent=1) if arguments.json else render(config, facts, batch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe=NAME, GROUP=NAME or key=value")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON: bytes, seconds, counts")
    parser.add_argument("--prompt-tokens", type=int, help="length of prompts for the times")
    parser.add_argument("--response-tokens", type=int, help="length of responses for the times")
    parser.add_argument("--scaling", action="store_true", help="print the table of docs/scaling.md")
    try:
        print(answer(parser.parse_intermixed_args()))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
