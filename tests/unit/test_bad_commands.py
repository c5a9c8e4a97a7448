"""Commands that cannot work are refused before the first stage: one line, exit status 2, and nothing is written.

Through the launcher's own `main`, in this process: a new one for each command takes seconds. That the process does the
same is what test_launcher.py sees.
"""

from __future__ import annotations

import gzip
import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.launch import preflight
from sami_nemo.launch.preflight import check_cpu
from tests.checkpoints import write_weights

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "launcher_scripts" / "main.py"

# 12 queries: 4 held out and 4 for each of two halves, as few as the small runs below need.
QUERIES = "".join(json.dumps({"query": f"What is {n}?", "kind": "sum"}) + "\n" for n in range(12))
OWN = ["recipe=sami_debug", "data=file", "data.evaluation_queries=4", "data.max_query_tokens=256"]
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
}


def write_checkpoint(directory: Path, *names: str, **changes: object) -> None:
    """A directory that looks like a checkpoint: config.json, weights of zeros, and other files that are empty."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(MISTRAL | changes))
    for name in names:
        (directory / name).touch()
    if "model.safetensors" in names:
        write_weights(directory, MISTRAL)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good and bad files."""
    monkeypatch.chdir(tmp_path)
    weights, tokenizer = "model.safetensors", "tokenizer.json"
    write_checkpoint(tmp_path / "good model", weights, tokenizer)
    write_checkpoint(tmp_path / "no_weights", "pytorch_model.bin", tokenizer)
    write_checkpoint(tmp_path / "no_tokenizer", weights)
    write_checkpoint(tmp_path / "qwen", weights, tokenizer, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    write_checkpoint(tmp_path / "headless", weights, tokenizer, architectures=["MistralModel"])
    write_checkpoint(tmp_path / "uneven", weights, tokenizer, num_key_value_heads=3)
    write_checkpoint(tmp_path / "empty weights", weights, tokenizer)
    (tmp_path / "empty weights" / weights).write_bytes(b"")
    write_checkpoint(tmp_path / "other weights", weights, tokenizer, num_hidden_layers=3)
    write_checkpoint(tmp_path / "no shard", tokenizer)
    index = {"weight_map": {"lm_head.weight": "model-00007-of-00009.safetensors"}}
    (tmp_path / "no shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "no shard" / "model-00001-of-00009.safetensors").touch()
    write_checkpoint(tmp_path / "dynamic", weights, tokenizer, rope_scaling={"type": "dynamic", "factor": 2.0})
    write_checkpoint(tmp_path / "gelu", weights, tokenizer, hidden_act="gelu")
    write_checkpoint(tmp_path / "quantised", weights, tokenizer, quantization_config={"bits": 4})
    write_checkpoint(tmp_path / "code", weights, tokenizer, auto_map={"AutoModel": "m.M"})
    write_checkpoint(tmp_path / "window", weights, tokenizer, sliding_window=1024)
    (tmp_path / "empty").mkdir()
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "own.jsonl").write_text(QUERIES)
    (tmp_path / "own.jsonl.gz").write_bytes(gzip.compress(QUERIES.encode()))
    (tmp_path / "broken.jsonl").write_text('{"query": "fine"}\n{"query": broken\n')
    (tmp_path / "blank.jsonl").write_text("\n")
    (tmp_path / "twice.jsonl").write_text('{"query": "Again?"}\n' * 12)
    asked = "".join(json.dumps({"query": text}) + "\n" for text in ("Why?", "How?", "", "why?"))
    (tmp_path / "mixed.jsonl").write_text(asked + '{"question": "When?"}\n' * 2)
    (tmp_path / "numbers.json").write_text(json.dumps([{"query": 1}, {"query": [2]}]))
    (tmp_path / "latin.csv").write_bytes("query\nWärum?\n".encode("latin-1"))
    (tmp_path / "broken.parquet").write_text("not parquet")
    (tmp_path / "text.txt").write_text("How?\n")
    (tmp_path / "broken.yaml").write_text("principles: [\n")
    return tmp_path


@pytest.fixture
def launcher() -> Iterator[Callable[..., int]]:
    """main.py's `main`; a dry run lets SIGPIPE end its process, which this one outlives."""
    before = signal.getsignal(signal.SIGPIPE)
    yield runpy.run_path(str(MAIN), run_name="launcher")["main"]
    signal.signal(signal.SIGPIPE, before)


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in directory.rglob("*")}


# What is given, what the one line must begin with, and what else it says.
BAD_COMMANDS = [
    # Blank texts: a path would be the working directory.
    (["runs_dir="], "runs_dir = '':", "blank"),
    (["runs_dir=' '"], "runs_dir = ' ':", "blank"),
    (["model.path="], "model.path = '':", "blank"),
    (["model=checkpoint", "model.path=' '"], "model.path = ' ':", "blank"),
    (["data.source="], "data.source = '':", "blank"),
    (["data.split="], "data.split = '':", "blank"),
    (["data.field="], "data.field = '':", "blank"),
    (["data.subsets=['']"], "data.subsets = ['']:", "blank"),
    (["principles.file="], "principles.file = '':", "blank"),
    (["principles.task=''"], "principles.task = '':", "blank"),
    (["principles=local_writer", "principles.model="], "principles.model = '':", "blank"),
    (["evaluate.instruct="], "evaluate.instruct = '':", "blank"),
    (["judge=endpoint", "judge.model="], "judge.model = '':", "blank"),
    (["logger.wandb_project="], "logger.wandb_project = '':", "blank"),
    (["logger.mlflow_tracking_uri="], "logger.mlflow_tracking_uri = '':", "blank"),
    (["cluster=slurm", "cluster.train_image="], "cluster.train_image = '':", "blank"),
    (["cluster=slurm", "cluster.default.partition=''"], "cluster.default.partition = '':", "blank"),
    # Names that no file can have.
    (["name=" + 256 * "n"], f"name = '{256 * 'n'}':", "at most 255"),
    (["model=checkpoint", f"model.path=/m/{256 * 'n'}"], f"model.path = '/m/{256 * 'n'}':", "255 bytes"),
    ([f"principles.file='{128 * 'ü'}'"], f"principles.file = '{128 * 'ü'}':", "255 bytes"),
    # Addresses, and names of variables.
    (["judge=endpoint", "judge.model=m", "judge.base_url=ftp://host/v1"], "judge.base_url = 'ftp://host/v1':", "http"),
    (["judge.base_url=http://"], "judge.base_url = 'http://':", "http://HOST:PORT"),
    (["judge.base_url=host:8000"], "judge.base_url = 'host:8000':", "http://HOST:PORT"),
    (["judge.base_url=http://host:99999/v1"], "judge.base_url = 'http://host:99999/v1':", "http://HOST:PORT"),
    (["judge.base_url='http://my host/v1'"], "judge.base_url = 'http://my host/v1':", "http://HOST:PORT"),
    (["principles.base_url=file:///etc"], "principles.base_url = 'file:///etc':", "http://HOST:PORT"),
    (
        ["judge.base_url=localhost:8000/v1"],
        "judge.base_url = 'localhost:8000/v1':",
        "probably http://localhost:8000/v1",
    ),
    (["principles.base_url=https//host.org/v1"], "principles.base_url = 'https//host.org/v1':", "https://host.org/v1"),
    # Parameters of requests.
    (["judge.request={model: m}"], "judge.request = model:", "key model"),
    (["judge.request={messages: []}"], "judge.request = messages:", "take it out"),
    (["judge.request={stream: true}"], "judge.request = stream:", "take it out"),
    (["judge.request={n: 2}"], "judge.request = n:", "take it out"),
    (["judge.request={extra_body: {top_k: 1}}"], "judge.request = extra_body:", "without extra_body"),
    (["judge.request={api_key: sk-1}"], "judge.request = api_key:", "api_key_variable"),
    (["judge.request={extra_headers: {a: b}}"], "judge.request = extra_headers:", "api_key_variable"),
    (["principles.request={a: [{Authorization: me}]}"], "principles.request = Authorization:", "api_key_variable"),
    (["judge.request={temperature: nan}"], "judge.request = temperature:", "no plain data"),
    (["judge.request=5"], "judge.request = 5:", "dictionary"),
    (["judge.request.n=2"], "judge.request = n:", "take it out"),
    (["judge.requests={n: 2}"], "judge.requests = ", "did you mean judge.request?"),
    (["judge.api_key_variable='MY KEY'"], "judge.api_key_variable = 'MY KEY':", "pattern"),
    (["principles.api_key_variable=1KEY"], "principles.api_key_variable = '1KEY':", "pattern"),
    (["seed=4294967296"], "seed = 4294967296:", "less than 4294967296"),
    # Where the run would be.
    (["runs_dir=text.txt"], "runs_dir = text.txt:", "no directory"),
    (["runs_dir=text.txt/runs"], "runs_dir = text.txt/runs:", "text.txt is no directory"),
    (["model.path=text.txt/model"], "model.path = text.txt/model:", "text.txt is no directory"),
    # What stands where a model would be made.
    (["model.path=."], "model.path = .:", "no manifest.json"),
    (["model.path=empty"], "model.path = empty:", "no manifest.json"),
    (["model.path=text.txt"], "model.path = text.txt:", "no manifest.json"),
    # What is no checkpoint.
    (["model=checkpoint", "model.path=/etc"], "model.path = /etc:", "no config.json"),
    (["model=checkpoint", "model.path=text.txt"], "model.path = text.txt:", "no config.json"),
    (["model=checkpoint", "model.path=no_weights"], "model.path = no_weights:", "no *.safetensors"),
    (["model=checkpoint", "model.path=no_tokenizer"], "model.path = no_tokenizer:", "no tokenizer.json"),
    (["model=checkpoint", "model.path=qwen"], "model.architecture = mistral:", "only mistral, mixtral, llama work"),
    (["model=checkpoint", "model.path=headless"], "model.path = headless:", "not ['MistralForCausalLM']"),
    (["model=checkpoint", "model.path=uneven"], "model.num_key_value_heads = 3:", "4 attention heads"),
    (["evaluate.instruct=empty"], "evaluate.instruct = empty:", "no config.json"),
    (["evaluate.instruct=/etc/passwd"], "evaluate.instruct = /etc/passwd:", "no config.json"),
    (["model=checkpoint", "model.path='empty weights'"], "model.path = ", "is cut off: it has 0 bytes"),
    (["model=checkpoint", "model.path='other weights'"], "model.path = other weights:", "lacks model.layers.2."),
    (["model=checkpoint", "model.path='no shard'"], "model.path = ", "the index names it, and it is not there"),
    (["model=checkpoint", "model.path=dynamic"], "model.path = dynamic:", "only linear, llama3 and yarn"),
    (["model=checkpoint", "model.path=gelu"], "model.path = gelu:", 'hidden_act = "gelu"'),
    (["model=checkpoint", "model.path=quantised"], "model.path = quantised:", "quantised weights"),
    (["model=checkpoint", "model.path=code"], "model.path = code:", "code of its own"),
    (["evaluate.instruct=gelu"], "evaluate.instruct = gelu:", 'hidden_act = "gelu"'),
    (
        ["model=checkpoint", "model.path=window", "generate.max_model_len=2048"],
        "generate.max_model_len = 2048:",
        "the model sees 1024 positions at a time; lower it",
    ),
    (["evaluate.instruct=qwen"], "evaluate.instruct = qwen:", "only mistral, mixtral, llama work"),
    (["principles=local_writer", "principles.model=no_weights"], "principles.model = no_weights:", "safetensors"),
    # The geometry of models that are made here.
    (["model.num_layers=31"], "model.num_layers = 31:", "num_hidden_layers = 30"),
    (["model.hidden_size=577"], "model.hidden_size = 577:", "= 576"),
    (["model.num_attention_heads=8"], "model.num_attention_heads = 8:", "= 9"),
    (["model.num_key_value_heads=9"], "model.num_key_value_heads = 9:", "= 3"),
    (["model.ffn_hidden_size=1"], "model.ffn_hidden_size = 1:", "= 1536"),
    (["model.head_dim=32"], "model.head_dim = 32:", "= 64"),
    (["model.vocab_size=5"], "model.vocab_size = 5:", "= 49152"),
    (["model.tied_embeddings=false"], "model.tied_embeddings = False:", "= True"),
    (["recipe=sami_smol_moe", "model.num_layers=31"], "model.num_layers = 31:", "num_hidden_layers = 30"),
    (["recipe=sami_smol_moe", "model.experts_per_token=3"], "model.experts_per_token = 3:", "= 2"),
    (["recipe=sami_smol_moe", "model.num_experts=null"], "model.num_experts = null:", "needs a number"),
    (["recipe=sami_debug", "model.num_layers=null"], "model.num_layers = null:", "needs a number"),
    (["recipe=sami_debug", "model.vocab_size=7"], "model.vocab_size = 7:", "= 1024"),
    (["recipe=sami_debug", "model.hidden_size=130"], "model.hidden_size = 130:", "multiple of the 4"),
    (["recipe=sami_debug", "model.hidden_size=64"], "model.head_dim = 16:", "vLLM"),
    (["recipe=sami_debug", "model.num_key_value_heads=3"], "model.num_key_value_heads = 3:", "4 attention heads"),
    (["generate.max_model_len=8193"], "generate.max_model_len = 8193:", "8192 positions"),
    (
        ["model=checkpoint", "model.path='good model'", "generate.max_model_len=4097"],
        "generate.max_model_len = 4097:",
        "4096",
    ),
    # Queries. Three iterations train on 16, 32 and 48: 48 of the first half, so on 95 in all of the sample's 376.
    (["data.evaluation_queries=100000"], "data.evaluation_queries = 100000:", "set at most 281"),
    (["data.evaluation_queries=282"], "data.evaluation_queries = 282:", "set at most 281"),
    # Two train on 16 of the first half and 32 of the second: on 64 in all.
    (["iterations=2", "data.evaluation_queries=313"], "data.evaluation_queries = 313:", "set at most 312"),
    (["train.batch_size=4096"], "data.source = sami_nemo/queries/sample_queries.jsonl:", "lower train.batch_size"),
    (["iterations=1000"], "data.source = sami_nemo/queries/sample_queries.jsonl:", "1000 iterations"),
    (["data.field=question"], "data.field = question:", "query, kind"),
    (["data.format=hh_rlhf"], "data.format = hh_rlhf:", "data.format=queries"),
    ([*OWN, "data.source=queries"], "data.source = queries:", "queries/*.jsonl"),
    ([*OWN, "data.source=text.txt"], "data.source = text.txt:", ".jsonl.gz"),
    ([*OWN, "data.source=blank.jsonl"], "data.source = blank.jsonl:", "no rows"),
    ([*OWN, "data.source=broken.jsonl"], "data.source = broken.jsonl, line 2", "not JSON"),
    ([*OWN, "data.source=broken.parquet"], "data.source = broken.parquet:", "Parquet"),
    # What became of the rows, when too few are left.
    (
        [*OWN, "data.source=mixed.jsonl"],
        "data.source = mixed.jsonl:",
        "2 without the field query (first mixed.jsonl:5)",
    ),
    ([*OWN, "data.source=mixed.jsonl"], "data.source = mixed.jsonl:", "their fields are query, question"),
    ([*OWN, "data.source=numbers.json"], "data.source = numbers.json:", "2 with something else than text in query"),
    ([*OWN, "data.source=latin.csv"], "data.source = ", "latin.csv, line 2: is not UTF-8"),
    ([*OWN, "data.source=twice.jsonl"], "data.source = twice.jsonl:", "it has 1 in all"),
    # Principles.
    (["principles.file=empty"], "principles.file = empty:", "no such file"),
    (["principles.file=broken.yaml"], "broken.yaml = (not YAML):", "line 2"),
]


# A dry run takes the same way; every fourth sees it.
@pytest.mark.parametrize(
    ("words", "start", "part"),
    [*BAD_COMMANDS, *((["dry_run=true", *words], start, part) for words, start, part in BAD_COMMANDS[::4])],
    ids=lambda value: " ".join(value)[:80] if isinstance(value, list) else "",
)
def test_a_bad_command_is_one_line(
    words: list[str],
    start: str,
    part: str,
    desk: Path,
    launcher: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Should the command pass for a good one, it must not start a run here.
    monkeypatch.setitem(launcher.__globals__, "run", lambda config: pytest.fail("the run begins"))
    before = contents(desk)
    assert launcher(words) == 2
    output, error = capsys.readouterr()
    assert output == "" and error.count("\n") == 1
    assert error.startswith(start) and part in error
    assert contents(desk) == before


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        # Fields that are wrong by themselves, unknown keys and choices among them.
        (
            ["train.batchsize=4", "train.lr=fast", "judge=nobody", "data.max_query_tokens=-1", "seed=1"],
            ["train.batchsize = 4: unknown key; did you mean train.batch_size?", "judge = nobody: no such choice",
             "data.max_query_tokens = -1", "train.lr = 'fast'"],
        ),
        # Combinations, and what is not there.
        (
            ["train.tensor_parallel=7", "train.pipeline_parallel=4", "generate.max_model_len=10", "judge.budget_dollars=5"],
            ["train.tensor_parallel = 7: must divide", "train.pipeline_parallel = 4: must divide", "judge.budget_dollars = 5.0",
             "generate.max_model_len = 10"],
        ),
        (["data.field=question", "runs_dir=text.txt"], ["runs_dir = text.txt", "data.field = question"]),
    ],
)  # fmt: skip
def test_every_wrong_field_is_told_at_once(
    words: list[str], starts: list[str], desk: Path, launcher: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(desk)
    assert launcher(words) == 2
    output, error = capsys.readouterr()
    lines = error.splitlines()
    assert output == "" and len(lines) == len(starts), error
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), error
    assert contents(desk) == before


# Neighbours of the bad commands.
GOOD_COMMANDS = [
    ["runs_dir='my runs'"],
    ["runs_dir=empty/runs/below"],
    ["name=" + 255 * "n"],
    ["model=checkpoint", "model.path='good model'", "generate.max_model_len=4096"],
    ["model=checkpoint", "model.path=someone/some-model"],
    ["model=checkpoint", "model.path=/on/the/cluster"],
    ["evaluate.instruct='good model'"],
    ["evaluate.instruct=someone/some-model"],
    ["principles=local_writer", "principles.model=qwen"],
    ["model.num_layers=null", "model.hidden_size=null"],
    ["generate.max_model_len=8192"],
    ["recipe=sami_debug", "model.num_layers=3", "model.hidden_size=256"],
    ["recipe=sami_debug", "model=tiny_random_moe", "model.experts_per_token=2"],
    ["data.evaluation_queries=281"],
    ["iterations=2", "data.evaluation_queries=312"],
    # Iterations 1 and 2 train on 2 and 4: with 4 held out, 4 of each half are left.
    [*OWN, "data.source=queries/own.jsonl"],
    [*OWN, "data.source='queries/*.jsonl'"],
    [*OWN, "data.source=own.jsonl.gz"],
    ["data=hh_rlhf", "data.source=squad"],
    ["data=file", "data.source=/on/the/cluster/queries.jsonl"],
    ["judge=endpoint", "judge.model=m", "judge.base_url='https://host/v1'"],
    ["judge=endpoint", "judge.model=m", "judge.base_url='http://[::1]:8000/v1'"],
    ["judge=endpoint", "judge.model=m", "judge.base_url='https://host/openai'"],
    ["judge=endpoint", "judge.model=m", "judge.api_key_variable=_my_KEY_2"],
    ["judge.request={max_completion_tokens: 4096, max_tokens: null, temperature: null}"],
    ["principles.request={reasoning_effort: low}", "judge.request.chat_template_kwargs.enable_thinking=false"],
    [
        "judge.request={stop_token_ids: [1], logit_bias: {7: -1}, max_tokens: 5, thinking_token_budget: 9, prompt_cache_key: x}"
    ],
    ["cluster=slurm", "cluster.train.environment={QUIET: ''}"],
    ["seed=4294967295"],
]


@pytest.mark.parametrize("words", GOOD_COMMANDS, ids=lambda words: " ".join(words)[:80])
def test_its_neighbours_pass(
    words: list[str], desk: Path, launcher: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(desk)
    status = launcher([*words, "dry_run=true"])
    assert (status, capsys.readouterr().err) == (0, "")
    assert contents(desk) == before


def test_queries_of_parquet_are_counted(
    desk: Path, launcher: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    datasets.Dataset.from_dict({"query": ["Why?", "How?"]}).to_parquet(str(desk / "two.parquet"))
    assert launcher([*OWN, "data.source=two.parquet", "dry_run=true"]) == 2
    assert "it has 2 in all" in capsys.readouterr().err


def test_a_run_is_looked_after_when_its_inputs_are_gone(
    desk: Path, launcher: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """And cancelled: the checks are for runs that begin."""
    words = ["model=checkpoint", "model.path=empty", "data.source=broken.jsonl"]
    assert launcher([*words, "action=status"]) == 2
    assert capsys.readouterr().err.startswith("run directory = runs/sami_smol:")


def test_more_than_the_machines_memory(desk: Path) -> None:
    """Through the whole preflight, in a process: nothing else is wrong with the command."""
    before = contents(desk)
    command = [sys.executable, str(MAIN), "generate.cpu_kv_cache_gib=100000"]
    done = subprocess.run(command, cwd=desk, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("generate.cpu_kv_cache_gib = 100000: this machine has ")
    assert contents(desk) == before


def test_what_the_machine_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def complaints(*words: str) -> dict[str, str]:
        return {problem.field: problem.remedy for problem in check_cpu(compose(["recipe=sami_debug", *words]))}

    monkeypatch.setattr(preflight, "total_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(preflight, "most_threads", lambda processes: 1000 // processes)
    assert complaints() == {}
    assert complaints("generate.cpu_kv_cache_gib=7", "hardware.threads_per_process=1000") == {}
    assert "has 8 GiB" in complaints("generate.cpu_kv_cache_gib=8")["generate.cpu_kv_cache_gib"]
    # Half a GiB each, and their tensors.
    assert complaints("hardware.devices_per_node=14", "train.batch_size=14") == {}
    assert "this machine has 8" in complaints("hardware.devices_per_node=17", "train.batch_size=17")["hardware"]
    assert complaints("hardware.threads_per_process=1001").keys() == {"hardware.threads_per_process"}
    assert (
        "can start 500 "
        in complaints("hardware.threads_per_process=501", "hardware.devices_per_node=2")["hardware.threads_per_process"]
    )
    # GPUs have memory of their own.
    assert check_cpu(compose(["recipe=sami_mixtral", "generate.cpu_kv_cache_gib=9"])) == []
