"""Every shipped recipe and group composes, is typed, and can work; the paper's recipes have the paper's values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sami_nemo.config import Config, Section, parse_config
from sami_nemo.config_checks import check_config
from sami_nemo.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
GROUPS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
PAPER = ["sami_mistral_hh", "sami_mistral", "sami_mixtral"]

# Parameters of mixtral-8x7b, in billions: 32 layers x 8 experts x 3 matrices of 4,096 x 14,336, and everything else.
MIXTRAL_EXPERTS = 32 * 8 * 3 * 4096 * 14336 / 1e9
MIXTRAL_DENSE = 46.7 - MIXTRAL_EXPERTS
MISTRAL = 7.24


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of models and data are relative to the repository's root."""
    monkeypatch.chdir(ROOT)


def compose_values(recipe: str, *overrides: str) -> dict[str, Any]:
    command_line = [f"hydra.searchpath=[file://{ROOT}]", f"recipes@_global_={recipe}", f"recipe={recipe}", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=command_line)
    values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    return values


def compose_recipe(recipe: str, *overrides: str) -> Config:
    return parse_config(compose_values(recipe, *overrides))


def test_the_recipes_are_there() -> None:
    assert set(RECIPES) == {"sami_smol", "sami_smol_moe", "sami_debug", *PAPER}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_can_work(recipe: str) -> None:
    config = compose_recipe(recipe)
    check_config(config)
    assert config.recipe == config.name == recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_which_group_it_takes(recipe: str) -> None:
    """A recipe is a whole experiment: it does not lean on the defaults of conf/config.yaml."""
    text = (ROOT / "recipes" / f"{recipe}.yaml").read_text()
    for group in ("model", "data", "constitution", "generate", "train", "cluster"):
        assert f"override /{group}: " in text


@pytest.mark.parametrize(("group", "choice"), GROUPS)
def test_every_choice_of_a_group_is_typed(group: str, choice: str) -> None:
    required = {"checkpoint": ["model.path=/models/own"], "file": ["data.source=own.jsonl"]}.get(choice, [])
    config = compose_recipe("sami_smol", f"{group}={choice}", *required)
    section = getattr(config, group)
    if "name" in type(section).model_fields and group != "model":
        assert section.name == choice


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_can_be_set_on_the_command_line(recipe: str) -> None:
    """Hydra overrides only keys that are there, so the groups state every field."""
    values = compose_values(recipe)
    assert values.keys() == Config.model_fields.keys()
    for name, section in Config.model_fields.items():
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section):
            assert values[name].keys() == section.annotation.model_fields.keys()


def test_the_default_recipe_is_sami_smol() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=[f"hydra.searchpath=[file://{ROOT}]"])
    values: Any = OmegaConf.to_container(composed, resolve=True)
    assert parse_config(values) == compose_recipe("sami_smol")


def test_command_line_wins_over_the_recipe() -> None:
    config = compose_recipe("sami_mixtral", "train.lr=1e-6", "constitution=tldr_claude_opus", "name=mine")
    assert (config.train.lr, config.constitution.name, config.name) == (1e-6, "tldr_claude_opus", "mine")
    assert config.train.optimizer == "rmsprop"


def test_own_model_needs_a_path() -> None:
    with pytest.raises(Exception, match=r"model\.path"):
        compose_recipe("sami_smol", "model=checkpoint")


@pytest.mark.parametrize("recipe", PAPER)
def test_values_of_the_paper(recipe: str) -> None:
    """Table 1, section 4 and appendix A.1.1."""
    config = compose_recipe(recipe)
    assert config.iterations == 3
    assert [config.training_steps(n) for n in (1, 2, 3)] == [2, 4, 6]
    train, generate = config.train, config.generate
    assert (train.batch_size, train.batches, train.constitutions_per_query) == (128, 2, 2)
    assert (train.lr, train.precision, train.logprob_normalization, train.kl_beta) == (5e-7, "bf16", "mean", 0.0)
    assert (generate.max_tokens, generate.chat_template, generate.require_full_stop) == (350, False, True)
    assert config.data.evaluation_selection == "first"
    assert (config.cluster.accelerator, config.cluster.devices_per_node, config.cluster.gpu_memory_gib) == (
        "gpu",
        8,
        79,
    )


def test_experiment_1_dialogue() -> None:
    config = compose_recipe("sami_mistral_hh")
    assert config.model.path == "mistralai/Mistral-7B-v0.1"
    assert (config.data.source, config.data.task) == ("Anthropic/hh-rlhf", "dialogue")
    assert config.data.subsets == ["helpful-base", "harmless-base"]
    assert config.data.evaluation_queries == 250 * len(config.data.subsets)
    assert config.constitution.name == "hh_rlhf_claude_opus"
    assert (config.train.optimizer, config.train.activation_checkpointing) == ("adamw", False)


@pytest.mark.parametrize(
    ("recipe", "path", "optimizer", "checkpointing"),
    [
        ("sami_mistral", "mistralai/Mistral-7B-v0.1", "adamw", False),
        ("sami_mixtral", "mistralai/Mixtral-8x7B-v0.1", "rmsprop", True),
    ],
)
def test_experiment_2_summaries(recipe: str, path: str, optimizer: str, checkpointing: bool) -> None:
    config = compose_recipe(recipe)
    assert config.model.path == path
    assert (config.data.source, config.data.task) == ("openai/summarize_from_feedback", "summary")
    assert (config.data.subsets, config.data.evaluation_queries) == (["comparisons"], 250)
    assert config.constitution.name == "tldr_mistral_instruct"
    assert (config.train.optimizer, config.train.activation_checkpointing) == (optimizer, checkpointing)


def training_gigabytes(config: Config, dense: float, experts: float, state_bytes: int) -> float:
    """Weights (bf16), gradients (fp32) and distributed optimizer states of one GPU, from billions of parameters."""
    train, ranks = config.train, config.data_parallel
    own_dense = dense / (train.tensor_parallel * train.pipeline_parallel)
    own_experts = experts / (train.tensor_parallel * train.pipeline_parallel * train.expert_parallel)
    states = own_dense / ranks + own_experts / (ranks // train.expert_parallel)
    return (own_dense + own_experts) * (2 + 4) + states * state_bytes


def test_paper_layouts_fit_their_gpus() -> None:
    """With room for activations; fp32 masters (4 bytes) with Adam's two states (8) or RMSprop's one (4)."""
    mistral, mixtral = compose_recipe("sami_mistral"), compose_recipe("sami_mixtral")
    assert mistral.train.distributed_optimizer and mixtral.train.distributed_optimizer
    assert math.isclose(training_gigabytes(mistral, MISTRAL, 0, 4 + 8), 33, abs_tol=1)
    assert math.isclose(training_gigabytes(mixtral, MIXTRAL_DENSE, MIXTRAL_EXPERTS, 4 + 4), 67, abs_tol=1)
    one_node = compose_recipe("sami_mixtral", "cluster=a100_8")
    assert training_gigabytes(one_node, MIXTRAL_DENSE, MIXTRAL_EXPERTS, 4 + 4) > 80
    assert mixtral.generate.tensor_parallel * 80 * mixtral.generate.gpu_memory_utilization > 2 * 46.7


def test_impossible_change_of_a_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.expert_parallel = 3: must divide the 8 experts"):
        check_config(compose_recipe("sami_mixtral", "train.expert_parallel=3"))
    with pytest.raises(ConfigError, match=r"train\.tensor_parallel = 2: must divide the 9 attention heads"):
        check_config(compose_recipe("sami_smol", "train.tensor_parallel=2", "cluster.devices_per_node=2"))
    with pytest.raises(ConfigError, match=r"train\.epochs = 3: unknown key"):
        compose_recipe("sami_smol", "+train.epochs=3")
