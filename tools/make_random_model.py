"""Make a small Mistral or Mixtral checkpoint with random weights and its own tokenizer. Downloads nothing.

.venv/train/bin/python tools/make_random_model.py --output models/tiny-random [--architecture mixtral --num-experts 4]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sami_nemo.errors import EXIT_USER_ERROR, UserError
from sami_nemo.model import random_model, sealed
from sami_nemo.model.prepare import MODEL_SEED


def main() -> int:
    default = random_model.Geometry()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument("--architecture", choices=("mistral", "mixtral"), default=default.architecture)
    parser.add_argument("--num-layers", type=int, default=default.num_layers)
    parser.add_argument("--hidden-size", type=int, default=default.hidden_size)
    parser.add_argument("--num-attention-heads", type=int, default=default.num_attention_heads)
    parser.add_argument("--num-key-value-heads", type=int, default=default.num_key_value_heads)
    parser.add_argument("--num-experts", type=int, help="of a Mixtral")
    parser.add_argument("--vocab-size", type=int, default=default.vocab_size)
    parser.add_argument("--seed", type=int, default=MODEL_SEED)
    arguments = vars(parser.parse_args())
    output, seed = arguments.pop("output"), arguments.pop("seed")
    geometry = random_model.Geometry(**arguments)
    if (geometry.architecture == "mixtral") != (geometry.num_experts is not None):
        parser.error("--num-experts goes with --architecture mixtral")
    try:
        sealed.place(output, lambda directory: random_model.build(directory, geometry, seed))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
