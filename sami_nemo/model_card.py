"""The model card of an export: what the model is, what it was made from, and the prompt that it was trained on.

No torch, and no dates: the same run gives the same bytes. Numbers of results come from outside, if at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from sami_nemo.base_model.locate import HUB_NAME
from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import PrincipleSet
from sami_nemo.prompts.templates import response_prefix, training_prompt

CARD = "README.md"
"""The name that the Hugging Face hub shows a card under."""
TEMPLATE = "model_card.j2"
QUERY_PLACE = "{query}"
# What the hub wants beside a license of its kind `other`.
LICENSE_KEYS = ("license", "license_name", "license_link")
FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """A measured number, with what it takes to judge it."""

    name: str
    mean: str
    sem: str
    n: str


def model_card(
    config: Config,
    principles: PrincipleSet,
    iteration: int,
    license: Mapping[str, Any],
    versions: Mapping[str, str],
    results: Sequence[Result] = (),
) -> str:
    """The card of the model of `iteration`, as Markdown behind YAML front matter.

    Args:
        license: front matter of the base model about it, see `base_license`.
        versions: packages of the environment that trained, by name.
        results: what was measured; without any, the card has no section of results.
    """
    base = base_name(config)
    front: dict[str, Any] = {"base_model": base, "library_name": "transformers", "pipeline_tag": "text-generation"}
    front |= {"tags": ["sami", "alignment"], **license}
    chat = config.generate.chat_template
    prompt = training_prompt(config.data.task, principles.desired.text, QUERY_PLACE, chat)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown, not HTML.
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["line"] = one_line
    return environment.get_template(TEMPLATE).render(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        title=f"{config.name}, iteration {iteration}",
        base=base,
        license=license.get("license"),
        config=config,
        iteration=iteration,
        settings=settings(config, iteration),
        principles=principles,
        source=shown_source(config),
        chat=chat,
        prompt=prompt,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", prompt)), default=0)),
        prefix=response_prefix(config.data.task, chat),
        place=QUERY_PLACE,
        versions=versions,
        results=results,
    )


def base_name(config: Config) -> str:
    """The base model's name on the hub, or that of the configuration: a path of this machine tells others nothing."""
    path = config.model.path
    return path if HUB_NAME.fullmatch(path) and not Path(path).is_dir() else config.model.name


def shown_source(config: Config) -> str:
    """The data set's hub name, or the name of the file."""
    source = config.data.source
    return source if HUB_NAME.fullmatch(source) and not Path(source).exists() else Path(source).name


def settings(config: Config, iteration: int) -> dict[str, str]:
    """What decides about the training, under the names of the paper where it has them."""
    train = config.train
    masters = f", {train.master_weights} master weights" if train.precision == "bf16" else ""
    return {
        "batch size (queries)": str(train.batch_size),
        "gradient steps of this iteration": str(config.training_steps(iteration)),
        "constitutions per query (N_c)": str(train.constitutions_per_query),
        "learning rate": f"{train.lr:g}",
        "optimizer": train.optimizer,
        "weight decay": f"{train.weight_decay:g}",
        "precision": train.precision + masters,
        "layout": train.layout,
        "log-probs of a response": train.logprob_normalization,
        "KL penalty to the base model": f"{train.kl_beta:g}" if train.kl_beta else "none",
        "seed": str(config.seed),
    }


def base_license(base: Path) -> dict[str, Any]:
    """What the card in the directory of a base model says about its license; empty if it has none that can be read."""
    try:
        text = (base / CARD).read_text(encoding="utf-8")
        found = FRONT_MATTER.match(text)
        front = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(front, dict) or not front.get("license"):
        return {}
    return {key: front[key] for key in LICENSE_KEYS if isinstance(front.get(key), str | list)}


def one_line(text: str) -> str:
    """For a list item or a cell of a table, which a line break or a bar would end."""
    return " ".join(text.split()).replace("|", "\\|")
