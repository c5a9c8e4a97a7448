"""config.json of other people's checkpoints: what it says, in this product's names, and the form that runs keep it in.

Every key that transformers' class of the architecture reads, in the version of either environment, is in one of the
tables here: part of `Geometry`, without effect on what is computed, or refused unless it says nothing. A key that no
class reads is left out. What a file does not say is what transformers takes for that architecture. Needs no torch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_type_hints

from sami_nemo.errors import CheckpointError
from sami_nemo.geometry import (
    ACTIVATION,
    ARCHITECTURES,
    CLASSES,
    DEFAULTS,
    DTYPE_KEYS,
    HF_NAMES,
    Geometry,
    RopeScaling,
    complete,
)

FILE = "config.json"
ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
# Without effect here, and kept: token ids, and what concerns training with transformers alone.
KEPT = (
    "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "use_cache",
    "output_router_logits", "router_aux_loss_coef", "router_jitter_noise",
)  # fmt: skip
# Without effect here, and left out: what transformers notes for itself, how it returns results, how it would generate text,
# other tasks, and how many parts of a product it computes apart.
INERT = frozenset({
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path",
    "_commit_hash", "tokenizer_class", "_attn_implementation_internal", "_experts_implementation_internal",
    "attn_implementation", "_output_attentions", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict", "return_dict_in_generate", "torchscript", "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward",
    "pretraining_tp", "is_decoder", "sep_token_id", "decoder_start_token_id", "prefix", "task_specific_params",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "bad_words_ids", "begin_suppress_tokens",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length",
    "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "remove_invalid_values",
    "repetition_penalty", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
})  # fmt: skip
# Of the form that is written here: for an older one, or none, transformers takes large tokenizers for wrongly converted ones
# and says so at length.
PLAIN_VERSION = "5.0.0"
NO_OTHER_CODE = "asks for code of its own, which is never run; take a checkpoint of the plain architecture"
# What would change what is computed, the values that say nothing, and why others are refused.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": ((None, ACTIVATION, "swish"), "vLLM samples these architectures with silu alone"),
    "attention_bias": ((None, False), "projections with a bias are not trained here"),
    "mlp_bias": ((None, False), "projections with a bias are not trained here"),
    "partial_rotary_factor": ((None, 1), "heads that are rotated in part are not trained here"),
    "layer_types": ((None,), "layers that differ in their attention are not trained here"),
    "per_layer_config": ((None,), "layers that differ in their sizes are not trained here"),
    "pruned_heads": ((None, {}), "pruned heads are not trained here"),
    "is_encoder_decoder": ((None, False), "only decoders are trained here"),
    "add_cross_attention": ((None, False), "only decoders are trained here"),
    "cross_attention_hidden_size": ((None,), "only decoders are trained here"),
    "tie_encoder_decoder": ((None, False), "only decoders are trained here"),
    "quantization_config": ((None,), "quantised weights cannot be trained; take the checkpoint in bfloat16"),
    "compression_config": ((None,), "quantised weights cannot be trained; take the checkpoint in bfloat16"),
    "auto_map": ((None, {}), NO_OTHER_CODE),
    "custom_pipelines": ((None, {}), NO_OTHER_CODE),
    "trust_remote_code": ((None, False), NO_OTHER_CODE),
}
# Keys that only some of the classes read.
READ_BY = {
    "sliding_window": ("mistral", "mixtral"),
    "num_local_experts": ("mixtral",),
    "num_experts": ("mixtral",),
    "num_experts_per_tok": ("mixtral",),
    "output_router_logits": ("mixtral",),
    "router_aux_loss_coef": ("mixtral",),
    "router_jitter_noise": ("mixtral",),
    "attention_bias": ("llama",),
    "mlp_bias": ("llama",),
    "pretraining_tp": ("llama",),
}
# transformers 5 reads Mixtral's under this name, too.
EXPERTS_ALIAS = "num_experts"


def read_geometry(checkpoint: Path, source: str = "model.path") -> Geometry:
    """The geometry of a checkpoint that is trained, scored or sampled from.

    Args:
        source: the configuration key that `checkpoint` comes from, for errors.

    Raises:
        CheckpointError: config.json is missing or damaged, is of another architecture or task, leaves out a size, or says
            what is not computed here.
    """
    values = read_config(checkpoint, source)
    geometry = geometry_of(values, checkpoint, source)
    classes, wanted = values.get("architectures"), CLASSES[geometry.architecture]
    if classes != [wanted]:
        raise CheckpointError(source, checkpoint, f"its config.json says architectures = {classes}, not [{wanted!r}]")
    return geometry


def geometry_of(values: dict[str, Any], checkpoint: Path, source: str = "model.path") -> Geometry:
    """The geometry that the fields of a config.json describe.

    Raises:
        CheckpointError: a size is missing, a value is not of its kind, the architecture is another, or the fields say what
            is not computed here.
    """
    try:
        return _geometry(values)
    except ValueError as problem:
        raise CheckpointError(source, checkpoint, f"its config.json {problem}") from None


def unread_keys(values: dict[str, Any]) -> list[str]:
    """Keys that no class of the architecture reads. They are ignored."""
    architecture = values["model_type"]
    known = ROPE_KEYS | set(HF_NAMES.values()) | set(KEPT) | INERT | REFUSED.keys() | {EXPERTS_ALIAS}
    return sorted(key for key in values if key not in known or architecture not in READ_BY.get(key, ARCHITECTURES))


def plain_config(values: dict[str, Any], geometry: Geometry, dtype: str) -> dict[str, Any]:
    """The fields of a config.json that says the same as `values`, in a form that transformers 4 and 5 and vLLM read alike.

    Args:
        dtype: that the weights are stored in, whatever `values` say of it.
    """
    kept = {
        key: values[key] for key in KEPT if key in values and geometry.architecture in READ_BY.get(key, ARCHITECTURES)
    }
    classes = [CLASSES[geometry.architecture]]
    stated = {"architectures": classes, "transformers_version": PLAIN_VERSION, "torch_dtype": dtype}
    return {**stated, **geometry.hf(), **kept}


def check_files(checkpoint: Path, source: str) -> None:
    """A directory holds what every checkpoint has: config.json, weights and a tokenizer.

    Raises:
        CheckpointError: the first that is missing.
    """
    read_config(checkpoint, source)
    if not any(checkpoint.glob("*.safetensors")):
        raise CheckpointError(source, checkpoint, "no *.safetensors; convert the checkpoint, other formats are pickle")
    if not any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(source, checkpoint, "no tokenizer.json or tokenizer.model; copy the model's tokenizer")


def read_config(checkpoint: Path, source: str) -> dict[str, Any]:
    """The fields of a checkpoint's config.json.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not (checkpoint / FILE).is_file():
        raise CheckpointError(source, checkpoint, "no config.json; give the directory of a Hugging Face checkpoint")
    values = read_json_file(checkpoint / FILE, checkpoint, source)
    if not values:
        raise CheckpointError(source, checkpoint, "its config.json is not a JSON object with the model's sizes")
    return values


def read_json_file(path: Path, checkpoint: Path, source: str) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        CheckpointError: it is none; of a pointer that Git LFS has left in its place, this is said.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if is_pointer(text.encode()):
            raise CheckpointError(source, checkpoint, f"its {path.name} is a Git LFS pointer; run `git lfs pull` there")
        values = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(source, checkpoint, f"its {path.name} cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(source, checkpoint, f"its {path.name} is not a JSON object")
    return values


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins so is what Git LFS leaves in the place of one that was not fetched."""
    return head.startswith(b"version https://git-lfs.github.com/spec/")


def _geometry(values: dict[str, Any]) -> Geometry:
    """Raises ValueError, a sentence whose subject is config.json."""
    architecture = str(values.get("model_type"))
    if architecture not in ARCHITECTURES:
        raise ValueError(f"says model_type = {architecture}; only {', '.join(ARCHITECTURES)} work")
    read = {key: value for key, value in values.items() if architecture in READ_BY.get(key, ARCHITECTURES)}
    for key, (neutral, reason) in REFUSED.items():
        if read.get(key) not in neutral:
            raise ValueError(f"says {key} = {_shown(read[key])}: {reason}")
    experts = HF_NAMES["num_experts"]
    read[experts] = _once(experts, [read.get(experts), read.get(EXPERTS_ALIAS)])
    found = {name: read[hf] for name, hf in HF_NAMES.items() if read.get(hf) is not None and hf not in ROPE_KEYS}
    for name, value in found.items():
        _check_kind(HF_NAMES[name], value, get_type_hints(Geometry)[name])
    defaults = DEFAULTS[architecture]
    # Null is an answer to two of them: a key for each head, and attention without a window.
    found = {name: value for name, value in defaults.items() if name not in _null(read)} | found
    if "num_key_value_heads" not in found and "num_attention_heads" in found:
        found["num_key_value_heads"] = found["num_attention_heads"]
    if "head_dim" not in found and found.get("hidden_size", 0) % found.get("num_attention_heads", 1):
        raise ValueError("states no head_dim, and its num_attention_heads do not divide its hidden_size")
    found, missing = complete(found)
    if missing:
        raise ValueError(f"lacks {', '.join(HF_NAMES[name] for name in missing)}")
    if found["head_dim"] % 2:
        raise ValueError(f"says head_dim = {found['head_dim']}; heads are rotated by pairs of channels")
    dtype = next((values[key] for key in DTYPE_KEYS if values.get(key) is not None), None)
    theta, scaling = _rope(read, found["rope_theta"], found["max_positions"])
    return Geometry(**found | {"dtype": dtype, "rope_theta": theta, "rope_scaling": scaling})


def _null(read: dict[str, Any]) -> set[str]:
    """Names whose null is an answer, where it is given."""
    answers = ("num_key_value_heads", "window")
    return {name for name in answers if HF_NAMES[name] in read and read[HF_NAMES[name]] is None}


def _check_kind(key: str, value: Any, hint: Any) -> None:
    """A whole number, a number or a truth value where `Geometry` wants one; counts are above 0."""
    kinds = getattr(hint, "__args__", (hint,))
    if bool in kinds and not isinstance(value, bool):
        raise ValueError(f"says {key} = {_shown(value)}; give true or false")
    if int in kinds and (type(value) is not int or value < 1):
        raise ValueError(f"says {key} = {_shown(value)}; give a whole number above 0")
    if float in kinds:
        _positive(key, value)


def _positive(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"says {key} = {_shown(value)}; give a number above 0")
    return float(value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "…"


def _once(key: str, values: list[Any]) -> Any:
    """What is said once or more often, alike."""
    said = [value for value in values if value is not None]
    if any(value != said[0] for value in said):
        raise ValueError(f"says {key} twice, {_shown(said[0])} and {_shown(said[-1])}; keep the right one")
    return said[0] if said else None


def _rope(read: dict[str, Any], default_theta: float, positions: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary embedding: in keys of their own, or in `rope_parameters` as transformers 5 saves them."""
    tables = [read.get("rope_scaling") or {}, read.get("rope_parameters") or {}]
    for table in tables:
        if not isinstance(table, dict) or any(isinstance(value, dict) for value in table.values()):
            raise ValueError(f"says {_shown(table)} of the rotary embedding; give one set of values for all layers")
    theta = _once("rope_theta", [read.get("rope_theta"), *(table.get("rope_theta") for table in tables)])
    theta = default_theta if theta is None else _positive("rope_theta", theta)

    def said(name: str) -> Any:
        return _once(f"rope_scaling.{name}", [table.get(name) for table in tables])

    if said("partial_rotary_factor") not in (None, 1):
        raise ValueError(f"says partial_rotary_factor = {said('partial_rotary_factor')}; all channels are rotated here")
    kind = _once("rope_scaling.rope_type", [table.get(name) for table in tables for name in ("rope_type", "type")])
    if kind in (None, "default"):
        return theta, None
    form = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}.get(kind)
    if form is None:
        raise ValueError(
            f"says rope_scaling.rope_type = {_shown(kind)}; only linear, llama3 and yarn are computed alike"
        )

    def number(name: str, default: float | None = None) -> float:
        value = said(name)
        if value is None and default is None:
            raise ValueError(f"lacks rope_scaling.{name}, which {kind} needs")
        return _positive(f"rope_scaling.{name}", default if value is None else value)

    scaling = form(number, said, positions)
    # Of the two versions of transformers, one reads it beside the table.
    outside = read.get("original_max_position_embeddings")
    if kind != "linear" and outside not in (None, scaling.original_max_position_embeddings):
        raise ValueError("says original_max_position_embeddings twice; keep the one in rope_scaling")
    return theta, scaling


def _linear(number: Any, said: Any, positions: int) -> RopeScaling:
    return RopeScaling(rope_type="linear", factor=number("factor"))


def _llama3(number: Any, said: Any, positions: int) -> RopeScaling:
    return RopeScaling(
        rope_type="llama3",
        factor=number("factor"),
        low_freq_factor=number("low_freq_factor"),
        high_freq_factor=number("high_freq_factor"),
        original_max_position_embeddings=int(number("original_max_position_embeddings", positions)),
    )


def _yarn(number: Any, said: Any, positions: int) -> RopeScaling:
    """With every default filled in, as transformers does: engines differ in what they take for what is left out."""
    before = int(number("original_max_position_embeddings", positions))
    factor = number("factor", positions / before)
    if said("attention_factor") is not None:
        attention = number("attention_factor")
    elif said("mscale") and said("mscale_all_dim"):
        attention = _magnitude(factor, number("mscale")) / _magnitude(factor, number("mscale_all_dim"))
    else:
        attention = _magnitude(factor)
    truncate = said("truncate")
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=before,
        attention_factor=attention,
        # 0 means the default there.
        beta_fast=number("beta_fast") if said("beta_fast") else 32.0,
        beta_slow=number("beta_slow") if said("beta_slow") else 1.0,
        truncate=True if truncate is None else bool(truncate),
    )


def _magnitude(factor: float, scale: float = 1.0) -> float:
    """Yarn's correction of the attention's temperature (Peng et al. 2023, equation 22)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
