"""Every shipped recipe and group composes, and the paper's recipes have the paper's values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sami_nemo.config.compose import compose
from sami_nemo.config.files import flatten
from sami_nemo.config.overrides import CONF, KEYS, RECIPES
from sami_nemo.config.precision import AUTO
from sami_nemo.config.schema import Config
from sami_nemo.launch.checks import check_config
from sami_nemo.launch.stages import plan

PAPER = ("sami_mistral_hh", "sami_mistral", "sami_mixtral")
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
CHOICES = sorted((group, path.stem) for group in GROUPS for path in (CONF / group).glob("*.yaml"))


# Parameters in billions. Experts of mixtral-8x7b: 32 layers x 8 experts x 3 matrices of 4,096 x 14,336.
MISTRAL = 7.24
MIXTRAL_EXPERTS = 32 * 8 * 3 * 4096 * 14336 / 1e9
MIXTRAL_DENSE = 46.7 - MIXTRAL_EXPERTS


def test_the_recipes_are_those_that_are_documented() -> None:
    assert set(NAMES) >= {"sami_smol", "sami_smol_moe", "sami_debug", "sami_mixtral_8x22b", *PAPER}


def test_the_larger_mixtral_differs_in_model_and_layout_only() -> None:
    """The paper does not have mixtral-8x22b; it is trained as mixtral-8x7b is."""
    smaller, larger = (
        flatten(compose([f"recipe={name}"]).model_dump()) for name in ("sami_mixtral", "sami_mixtral_8x22b")
    )
    differing = {key for key in smaller if smaller[key] != larger[key]}
    layout = {f"train.{axis}_parallel" for axis in ("tensor", "pipeline", "expert", "sequence")}
    memory = {
        "train.activation_checkpointing",
        "generate.tensor_parallel",
        "hardware.name",
        "hardware.nodes",
    }
    allowed = layout | memory | {"name", "recipe"}
    assert {key for key in differing if not key.startswith("model.")} <= allowed


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_is_sound_and_states_only_differences(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Models that this machine may have prepared play no part.
    monkeypatch.chdir(tmp_path)
    config = compose([f"recipe={recipe}"])
    check_config(config)
    assert config.recipe == config.name == recipe
    own = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    groups = {name: choice for entry in own["defaults"] for name, choice in entry.items()}
    # A recipe is a whole experiment: it does not lean on the defaults of conf/config.yaml. Where it runs is no part of it.
    assert {name.removeprefix("override /") for name in groups} >= {*GROUPS} - {"evaluate", "logger", "cluster"}
    without = compose([f"{name.removeprefix('override /')}={choice}" for name, choice in groups.items()])
    before, now = flatten(without.model_dump()), flatten(config.model_dump())
    for key in flatten({name: value for name, value in own.items() if name != "defaults"}):
        assert before[key] != now[key], f"{recipe} repeats {key}"


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{group}={choice}" for group, choice in CHOICES])
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    required = {
        ("data", "file"): ["data.source=queries.jsonl"],
        ("model", "checkpoint"): ["model.path=my/model"],
        ("principles", "file"): ["principles.file=p.yaml"],
        ("principles", "endpoint_writer"): ["principles.model=m"],
        ("judge", "endpoint"): ["judge.model=m"],
    }
    config = compose([f"{group}={choice}", *required.get((group, choice), [])])
    stated = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
    section = flatten(getattr(config, group).model_dump())
    fixed = {
        key: value
        for key, value in flatten(stated).items()
        if key != "defaults" and value != AUTO and not str(value).startswith(("???", "${"))
    }
    assert {key: section[key] for key in fixed} == fixed


def test_every_field_of_the_schema_can_be_set() -> None:
    """Any key that config/schema.py knows is accepted on the command line, whether or not a group states it."""
    values = flatten(compose([]).model_dump())
    keys = [key for key in KEYS if key not in ("recipe", "name")]
    assert set(keys) | {"recipe", "name"} == set(values)
    # JSON's spelling of values is a part of Hydra's.
    words = [f"{key}={json.dumps(values[key])}" for key in keys]
    assert compose(words) == compose([])


@pytest.mark.parametrize("recipe", PAPER)
def test_table_1_and_section_4(recipe: str) -> None:
    config = compose([f"recipe={recipe}"])
    train = config.train
    assert config.iterations == 3
    assert train.batch_size == 128
    assert [config.training_steps(n) for n in (1, 2, 3)] == [2, 4, 6]
    assert train.constitutions_per_query == 2
    assert train.lr == 5e-7
    assert train.precision == "bf16"
    mixtral = recipe == "sami_mixtral"
    assert train.optimizer == ("rmsprop" if mixtral else "adamw")
    assert train.activation_checkpointing is mixtral
    # Appendix A.1.1.
    assert config.generate.max_tokens == 350
    assert config.generate.chat_template is False
    # Sections 5 and 6: the first 250 queries, of each of two data sets in dialogue.
    assert config.data.evaluation_selection == "first"
    assert config.data.evaluation_queries == (500 if config.data.task == "dialogue" else 250)
    assert config.hardware.gpu_memory_gib is not None and 72 < config.hardware.gpu_memory_gib <= 80
    assert config.hardware.devices_per_node == 8


def test_models_data_and_principles_of_the_experiments() -> None:
    found = {
        recipe: (config.model.path, config.data.source, config.principles.file, config.model.num_experts)
        for recipe in PAPER
        for config in [compose([f"recipe={recipe}"])]
    }
    tldr = ("openai/summarize_from_feedback", "summary_mistral_instruct.yaml")
    assert found == {
        "sami_mistral_hh": ("mistralai/Mistral-7B-v0.1", "Anthropic/hh-rlhf", "dialogue_claude_opus.yaml", None),
        "sami_mistral": ("mistralai/Mistral-7B-v0.1", *tldr, None),
        "sami_mixtral": ("mistralai/Mixtral-8x7B-v0.1", *tldr, 8),
    }


@pytest.mark.parametrize("recipe", PAPER)
def test_judge_and_baseline_of_the_experiments(recipe: str) -> None:
    config = compose([f"recipe={recipe}"])
    assert (config.judge.method, config.judge.model) == ("endpoint", "gpt-4-0613")
    assert config.evaluate.instruct == "mistralai/Mistral-7B-Instruct-v0.1"


@pytest.mark.parametrize("recipe", ["sami_mistral", "sami_mixtral"])
@pytest.mark.parametrize("writer", ["mistral_instruct", "claude_opus"])
def test_both_writers_of_experiment_2(recipe: str, writer: str) -> None:
    config = compose([f"recipe={recipe}", f"principles={writer}"])
    check_config(config)
    assert config.principles.file == f"summary_{writer}.yaml"


def training_gigabytes(config: Config, dense: float, experts: float, state_bytes: int) -> float:
    """Weights (bf16), gradients (fp32) and distributed optimizer states of one GPU, from billions of parameters."""
    train, ranks = config.train, config.data_parallel
    own_dense = dense / (train.tensor_parallel * train.pipeline_parallel)
    own_experts = experts / (train.tensor_parallel * train.pipeline_parallel * train.expert_parallel)
    states = own_dense / ranks + own_experts / (ranks // train.expert_parallel)
    return (own_dense + own_experts) * (2 + 4) + states * state_bytes


def test_paper_layouts_fit_their_gpus() -> None:
    """With room for activations; fp32 masters (4 bytes) with Adam's two states (8) or RMSprop's one (4).

    By rough numbers; tests of the planner have the exact ones.
    """
    mistral, mixtral = compose(["recipe=sami_mistral"]), compose(["recipe=sami_mixtral"])
    assert mistral.train.distributed_optimizer and mixtral.train.distributed_optimizer
    assert training_gigabytes(mistral, MISTRAL, 0, 4 + 8) == pytest.approx(33, abs=1)
    assert training_gigabytes(mixtral, MIXTRAL_DENSE, MIXTRAL_EXPERTS, 4 + 4) == pytest.approx(45, abs=1)
    one_node = compose(["recipe=sami_mixtral", "hardware=a100_8", "train.pipeline_parallel=1"])
    assert training_gigabytes(one_node, MIXTRAL_DENSE, MIXTRAL_EXPERTS, 4 + 4) > 80
    assert mixtral.generate.tensor_parallel * 80 * mixtral.generate.gpu_memory_utilization > 2 * 46.7


def test_stages_follow_what_they_read() -> None:
    """Inputs come before the stages that read them, and outputs belong to one stage each."""
    stages = plan(compose(["recipe=sami_smol_moe"]))
    seen: set[str] = set()
    for stage in stages:
        assert set(stage.inputs) <= seen, stage.name
        seen.add(stage.name)
    outputs = [path for stage in stages for path in stage.outputs]
    assert len(set(outputs)) == len(outputs)
    by_name = {stage.name: stage for stage in stages}
    # Every iteration trains from the base model, on responses of the model before.
    assert by_name["train_2"].inputs == ("model", "groups_1")
    assert by_name["sample_2"].inputs == ("principles", "queries", "train_2")
    assert [stage.name for stage in stages if stage.environment == "generate"] == [
        "principles",
        *(f"sample_{n}" for n in range(4)),
    ]
