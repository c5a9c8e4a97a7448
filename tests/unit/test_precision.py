"""What `auto` becomes: by the flags of real processors, by the hardware, and by what a run began with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sami_nemo.config.compose import compose, compose_for
from sami_nemo.config.files import dump_config
from sami_nemo.config.precision import Processor, parse_cpuinfo
from sami_nemo.errors import ConfigError
from sami_nemo.launch.checks import check_config
from sami_nemo.planner.fit import disk_bytes
from tests.unit.test_launcher import MAIN

# As Linux prints them, without what every x86-64 has.
X86 = {
    "AMD EPYC 7763 64-Core Processor": "avx f16c fma avx2 bmi1 bmi2 erms invpcid rdseed adx smap clflushopt clwb sha_ni "
    "xsaveopt xsavec xgetbv1 xsaves clzero xsaveerptr arat npt umip vaes vpclmulqdq rdpid fsrm",
    "AMD EPYC 9654 96-Core Processor": "avx f16c fma avx2 avx512f avx512dq adx smap avx512ifma clflushopt clwb avx512cd "
    "sha_ni avx512bw avx512vl xsaveopt xsavec avx512_bf16 clzero avx512vbmi umip avx512_vbmi2 gfni vaes vpclmulqdq "
    "avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid fsrm",
    "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz": "avx f16c fma avx2 smep bmi2 erms invpcid mpx rdseed adx smap clflushopt "
    "intel_pt xsaveopt xsavec xgetbv1 xsaves dtherm ida arat pln pts",
    "Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz": "avx f16c fma avx2 avx512f avx512dq rdseed adx smap clflushopt clwb "
    "avx512cd avx512bw avx512vl xsaveopt xsavec avx512_vnni ospke",
    "Intel(R) Xeon(R) Platinum 8488C": "avx f16c fma avx2 avx_vnni avx512_bf16 wbnoinvd avx512vbmi umip avx512_vbmi2 gfni "
    "vaes vpclmulqdq avx512_vnni avx512_bitalg amx_bf16 avx512_fp16 amx_tile amx_int8 flush_l1d",
}
# A Neoverse N1 (Graviton2) and a Neoverse V1 (Graviton3).
ARM_WITHOUT = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
ARM_WITH = ARM_WITHOUT + " sve asimdfhm dit uscat ilrcpc flagm dcpodp svei8mm svebf16 i8mm bf16 dgh rng"
ZEN_3, ZEN_4 = list(X86)[:2]


@pytest.fixture(autouse=True)
def nothing_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where no run has begun: after `make run` this checkout has one of the default name, which keeps its formats."""
    monkeypatch.chdir(tmp_path)


def cpuinfo(name: str, *cores: str) -> str:
    return "".join(
        f"processor\t: {number}\nvendor_id\t: x\nmodel name\t: {name}\nflags\t\t: fpu sse2 {flags}\n\n"
        for number, flags in enumerate(cores)
    )


def arm_cpuinfo(*cores: str) -> str:
    return "".join(
        f"processor\t: {number}\nBogoMIPS\t: 243.75\nFeatures\t: {flags}\n\n" for number, flags in enumerate(cores)
    )


def processor(name: str) -> Processor:
    return parse_cpuinfo(cpuinfo(name, X86[name], X86[name]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((cpuinfo(name, flags, flags), "9654" in name or "8488C" in name) for name, flags in X86.items()),
        (arm_cpuinfo(ARM_WITHOUT), False),
        (arm_cpuinfo(ARM_WITH, ARM_WITH), True),
        # Some cores only, as in processors of large and small cores.
        (arm_cpuinfo(ARM_WITH, ARM_WITHOUT), False),
        ("", False),
        ("processor: 0\nflags:\n", False),
    ],
)
def test_flags_of_real_processors(text: str, expected: bool) -> None:
    assert parse_cpuinfo(text).multiplies_bf16 is expected


def test_a_flag_is_a_whole_word() -> None:
    assert not parse_cpuinfo(cpuinfo("x", "my_avx512_bf16 bf16x svebf16")).multiplies_bf16


@pytest.mark.parametrize(
    ("limit", "expected"), [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True), ("ALL", True)]
)
def test_instructions_that_a_user_has_turned_off(limit: str, expected: bool) -> None:
    found = parse_cpuinfo(cpuinfo(ZEN_4, X86[ZEN_4]), limit)
    assert found.multiplies_bf16 is expected
    assert expected or f"ONEDNN_MAX_CPU_ISA={limit}" in found.explain()


def test_on_a_laptop_with_and_without_bf16() -> None:
    config, said = compose_for([], processor(ZEN_3))
    assert (config.train.precision, config.generate.dtype, config.train.gradient_type) == ("fp32", "float32", "fp32")
    assert said == (
        f"train.precision = fp32, generate.dtype = float32: {ZEN_3} has no bf16 instructions, so fp32 is faster"
    )
    config, said = compose_for([], processor(ZEN_4))
    assert (config.train.precision, config.generate.dtype) == ("bf16", "bfloat16")
    assert said and "(avx512_bf16)" in said


@pytest.mark.parametrize("recipe", ["sami_mixtral", "sami_mistral_hh"])
def test_gpus_compute_in_bf16_whatever_the_cpu(recipe: str) -> None:
    config, said = compose_for([f"recipe={recipe}"], processor(ZEN_3))
    assert (config.train.precision, config.generate.dtype) == ("bf16", "bfloat16")
    assert said and said.endswith(": on GPUs")


def test_any_recipe_on_a_laptop_follows_the_laptop() -> None:
    config, _ = compose_for(["recipe=sami_mistral", "hardware=laptop"], processor(ZEN_3))
    assert (config.train.precision, config.generate.dtype) == ("fp32", "float32")


def test_what_is_said_stays() -> None:
    config, said = compose_for(["train.precision=bf16", "generate.dtype=bfloat16"], processor(ZEN_3))
    assert (config.train.precision, config.generate.dtype, said) == ("bf16", "bfloat16", None)
    # One of the two.
    config, said = compose_for(["train.precision=bf16"], processor(ZEN_3))
    assert (config.train.precision, config.generate.dtype) == ("bf16", "float32")
    assert said and said.startswith("generate.dtype = float32: ")


def test_checks_and_planner_follow_what_was_chosen() -> None:
    with pytest.raises(ConfigError, match=r"train.master_weights = bf16: .*train.precision=bf16"):
        check_config(compose_for(["train.master_weights=bf16"], processor(ZEN_3))[0])
    check_config(compose_for(["train.master_weights=bf16"], processor(ZEN_4))[0])
    in_fp32, in_bf16 = (disk_bytes(compose_for([], processor(name))[0]) for name in (ZEN_3, ZEN_4))
    # Three exports of 134.5 M parameters, and two checkpoints of the training state: in fp32 weights and two moments, in
    # bf16 masters and two moments.
    assert in_fp32 is not None and in_bf16 is not None
    assert in_fp32 - in_bf16 == pytest.approx(3 * 2 * 134.5e6, rel=1e-3)


@pytest.mark.parametrize(("began", "goes_on"), [(ZEN_3, ZEN_4), (ZEN_4, ZEN_3)])
def test_a_run_keeps_what_it_began_with(tmp_path: Path, began: str, goes_on: str) -> None:
    overrides = ["name=mine", f"runs_dir={tmp_path}"]
    first, _ = compose_for(overrides, processor(began))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text(dump_config(first))
    second, said = compose_for(overrides, processor(goes_on))
    assert second == first
    assert said and "as the run began" in said
    other, _ = compose_for(["name=other", overrides[1]], processor(goes_on))
    assert other.train.precision != first.train.precision


@pytest.mark.parametrize("text", ["", "[]", "train: 3", "train: {precision: tf32}", "\x00", "a: ["])
def test_a_config_that_says_nothing_useful_decides_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text(text)
    config, _ = compose_for(["name=mine", f"runs_dir={tmp_path}"], processor(ZEN_4))
    assert config.train.precision == "bf16"


def test_other_values_are_refused_with_what_may_stand_there() -> None:
    for key, value in (("train.precision", "fp16"), ("generate.dtype", "half")):
        with pytest.raises(ConfigError, match=key):
            compose([f"{key}={value}"])


def test_a_dry_run_shows_it(tmp_path: Path) -> None:
    command = [sys.executable, str(MAIN), "dry_run=true", "recipe=sami_mixtral"]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    first, rest = printed.split("\n", 1)
    assert first == "# train.precision = bf16, generate.dtype = bfloat16: on GPUs"
    assert yaml.safe_load(rest)["train"]["precision"] == "bf16"
