"""Keys stay in the environment, conversations stay their owner's, weights are no programs, and nothing calls home."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import train_sft
from eval.answers.answering import answer_rows
from observer import cli
from observer.backends.hf import HfBackend
from observer.backends.ollama import OllamaBackend
from observer.config import Config, load_config
from observer.console.telemetry import SWITCHES
from observer.data.own_data import make_own_data
from observer.engine.engine import Engine
from observer.errors import ObserverError
from observer.files import write_json, write_jsonl
from observer.ollama.client import Patience
from observer.paths import PROJECT_ROOT, DataPaths
from observer.training.token_cache import look_up
from observer.weights.base import looks_local, with_commit
from observer.weights.checkpoint import list_tensors, read_shape
from observer.weights.gguf_places import names_gguf
from observer.weights.merge import merge_adapter
from tests.support.label_server import LabelServer, Received, Reply
from tests.support.tiny_runs import raw_rows, split_rows, write_tiny_run

CANARY = "sk-canary-77aa88bb99cc00dd"
KEYS = "OPENAI_API_KEY HF_TOKEN WANDB_API_KEY ANTHROPIC_API_KEY OLLAMA_API_KEY AWS_SECRET_ACCESS_KEY".split()
SOURCES = [
    path
    for folder in ("observer", "eval", "data", "tests/trust")
    for path in sorted((PROJECT_ROOT / folder).rglob("*.py"))
] + [PROJECT_ROOT / "train_sft.py"]  # fmt: skip


def with_keys(**more: str) -> dict[str, str]:
    return os.environ | dict.fromkeys(KEYS, CANARY) | more


# ---- keys


def echoing(request: Received) -> Reply:
    assert request.key == CANARY  # it did reach the server, which now gives it away
    return Reply(text=json.dumps({"reasoning": f"The key is {CANARY}.", "label": "STORE", "confidence": 1}))


FAULTS: dict[str, Callable[[Received], Reply]] = {
    "sound": echoing,
    "401": lambda _: Reply(status=401, message=f"Incorrect API key provided: {CANARY}"),
    "500": lambda _: Reply(status=500, message=f"while checking {CANARY}"),
    "400": lambda _: Reply(status=400, message=f"bad request of {CANARY}"),
    "cut": lambda _: Reply(is_cut=True),
    "no JSON": lambda _: Reply(body=f"<html>{CANARY}</html>"),
    "refusal": lambda _: Reply(refusal=f"I will not tell {CANARY}"),
}


EACH = """
import json, sys, traceback
from observer.cli import main
codes = {}
for name, arguments in json.loads(sys.argv[1]).items():
    try:
        codes[name] = main(arguments)
    except Exception:
        traceback.print_exc()
        codes[name] = 1
print("\\n" + json.dumps(codes))
"""


def test_no_key_reaches_output_ledger_or_traceback_of_labelling(tmp_path: Path) -> None:
    """With --debug and the client's own debug log, in a process of its own."""

    def answer(request: Received) -> Reply:
        (fault,) = [fault for fault in FAULTS if f"USER: {fault}!" in request.exchange]
        return FAULTS[fault](request)

    commands = {}
    with LabelServer(answer).running() as server:
        for fault in FAULTS:
            folder = tmp_path / fault
            said = {"user_message": f"{fault}! I work at Siemens", "assistant_message": "ok"}
            write_jsonl(folder / "in.jsonl", [said])
            command = ["--debug", "label", str(folder / "in.jsonl"), "--task", "grade", "--model", "m"]
            command += ["--out", str(folder / "out.jsonl"), "--base-url", server.url, "--max-retries", "0"]
            commands[fault] = command
        done = subprocess.run(
            [sys.executable, "-c", EACH, json.dumps(commands)],
            capture_output=True,
            text=True,
            cwd=PROJECT_ROOT,
            env=with_keys(OPENAI_LOG="debug", PYTHONFAULTHANDLER="1", PYTHONASYNCIODEBUG="1"),
        )
    assert len(server.received) >= len(FAULTS) and "sk-canary" not in done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {fault: int(fault != "sound") for fault in FAULTS}, done.stderr
    assert done.stderr.count("Traceback (most recent call last)") >= len(FAULTS) - 1
    assert_no_key_below(tmp_path)


def test_no_key_is_traced_in_a_manifest() -> None:
    code = "import json; from observer.runs.manifest import environment; print(json.dumps(environment()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=with_keys())
    assert json.loads(done.stdout)["packages"] and CANARY not in done.stdout + done.stderr


def test_no_key_is_shown_by_a_plan(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in KEYS:
        monkeypatch.setenv(name, CANARY)
    assert train_sft.main(["--config", str(write_tiny_run(tmp_path, tiny_model)), "--dry-run", "--debug"]) == 0
    printed = capsys.readouterr()
    assert printed.out and CANARY not in printed.out + printed.err


def test_a_password_in_the_address_of_a_server_is_not_repeated() -> None:
    host = f"http://me:{CANARY}@127.0.0.1:9"  # nothing listens there
    with (
        OllamaBackend("m", host, patience=Patience(timeout_s=2, max_retries=0)) as backend,
        pytest.raises(ObserverError) as raised,
    ):
        backend.grade(["USER: hi"])
    assert "127.0.0.1:9" in str(raised.value) and CANARY not in str(raised.value)


def assert_no_key_below(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


# ---- files that hold conversations


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The most open of all: every permission of a new file is the program's choice."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes_below(folder: Path) -> dict[str, str]:
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*") if path.is_file()}


def test_what_labelling_writes_is_its_owners_alone(
    tmp_path: Path, open_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    source, out = tmp_path / "in" / "in.jsonl", tmp_path / "out"
    write_jsonl(source, [*raw_rows(6), {"user_message": ""}])
    with LabelServer(lambda _: Reply()).running() as server:
        given = ["label", str(source), "--task", "grade", "--model", "m", "--base-url", server.url]
        assert cli.main([*given, "--out", str(out / "out.jsonl")]) == 0
        assert cli.main([*given, "--out", str(out / "audit.json"), "--audit"]) in (0, 1)
    modes = modes_below(out)
    assert {"out.jsonl", "out.quarantine.jsonl", "audit.json", "in.ledger.jsonl"} <= modes.keys()
    assert set(modes.values()) == {"0o600"}


def test_observations_and_memory_are_their_owners_alone(
    tmp_path: Path, open_umask: None, nano_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in" / "in.jsonl", tmp_path / "out"
    write_jsonl(source, raw_rows(6))
    given = ["observe", str(source), "--model", str(nano_gguf), "--out", str(out / "seen.jsonl")]
    assert cli.main([*given, "--memory", str(out / "memory.sqlite")]) == 0
    modes = modes_below(out)
    assert {"seen.jsonl", "memory.sqlite"} <= modes.keys() and set(modes.values()) == {"0o600"}


def test_rows_answers_and_tokens_of_ones_own_data_are_their_owners_alone(
    tmp_path: Path, open_umask: None, nano_gguf: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    write_jsonl(source, raw_rows(12))
    make_own_data([source], Config().data, 0).write(DataPaths(out / "data"))
    with Engine(nano_gguf, n_threads=1) as engine:
        answer_rows(engine, split_rows(6), keep_in=out / "evaluation.answers.jsonl")
    look_up(["I work at Siemens"], "tokenizer", lambda texts: [[1, 2] for _ in texts], out / "tokens")
    modes = modes_below(out)
    assert {"train.jsonl", "val.jsonl", "evaluation.answers.jsonl"} <= modes.keys()
    assert set(modes.values()) == {"0o600"}


# ---- weights are no programs


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def pickled(tmp_path: Path, tiny_model: Path) -> tuple[Path, Path]:
    """A model whose weights are a pickle with a payload, and the file that the payload would make."""
    folder, marker = tmp_path / "pickled", tmp_path / "owned"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert marker.exists()
    marker.unlink()
    return folder, marker


def test_a_pickled_checkpoint_is_refused_by_the_backend_and_the_export(pickled: tuple[Path, Path]) -> None:
    folder, marker = pickled
    with pytest.raises(ObserverError, match="cannot read it"):
        HfBackend(folder)
    with pytest.raises(ObserverError, match=r"safetensors"):
        list_tensors(folder, read_shape(folder))
    assert cli.main(["export", str(folder), "--out", str(folder.parent / "gguf")]) == 1
    assert not marker.exists()


def test_a_pickled_adapter_is_refused(pickled: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    folder, marker = pickled
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(tiny_model), "r": 4, "lora_alpha": 4})
    shutil.copy(folder / "pytorch_model.bin", adapter / "adapter_model.bin")
    with pytest.raises(ObserverError, match="only safetensors are read"):
        merge_adapter(adapter, tiny_model, tmp_path / "merged")
    assert not marker.exists()


def test_code_in_a_models_folder_is_never_run(tmp_path: Path, tiny_model: Path) -> None:
    folder, marker = tmp_path / "with-code", tmp_path / "owned"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Qwen3Config", "AutoModelForCausalLM": "evil.Qwen3ForCausalLM"}
    write_json(folder / "config.json", config | {"auto_map": auto_map})
    (folder / "evil.py").write_text(
        f"from transformers import Qwen3Config, Qwen3ForCausalLM\nopen({str(marker)!r}, 'w').close()\n"
    )
    with HfBackend(folder, n_threads=1):
        assert not marker.exists()


class Called(NamedTuple):
    """A call in our sources: `AutoModel.from_pretrained`, what it is given by name, and where it stands."""

    name: str
    given: dict[str, str]
    place: str


@cache
def calls() -> list[Called]:
    return [called for path in SOURCES for called in calls_in(path)]


def calls_in(path: Path) -> Iterator[Called]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    dicts: dict[str, ast.Dict] = {}
    for node in nodes:
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Dict):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            dicts[ast.unparse(target)] = node.value
    for node in nodes:
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
            for keyword in node.keywords:
                spread = dicts.get(ast.unparse(keyword.value)) if keyword.arg is None else None
                if spread:  # `**options`, where the file says what they are
                    pairs = zip(spread.keys, spread.values, strict=True)
                    given |= {ast.unparse(key).strip("'"): ast.unparse(value) for key, value in pairs if key}
            place = f"{path.relative_to(PROJECT_ROOT).as_posix()}:{node.lineno}"
            yield Called(ast.unparse(node.func), given, place)


CHECKS_ITS_FOLDER = {"FastLanguageModel.from_pretrained"}
"""Unsloth knows no `use_safetensors`; `base_folder` has refused a folder without safetensors before."""


def test_models_are_loaded_without_their_code_and_from_safetensors() -> None:
    loads = [call for call in calls() if call.name.endswith(".from_pretrained")]
    assert len(loads) >= 10
    assert [call.place for call in loads if call.given.get("trust_remote_code") != "False"] == []
    weights = [call for call in loads if "Model" in call.name or "CausalLM" in call.name]
    careless = [call for call in weights if call.given.get("use_safetensors") != "True"]
    assert [call.place for call in careless if call.name not in CHECKS_ITS_FOLDER] == []


def test_nothing_that_is_read_can_run() -> None:
    roots, names = {"pickle", "marshal", "shelve", "joblib", "dill"}, {"eval", "exec", "yaml.load", "os.system"}
    assert [
        call.place
        for call in calls()
        if call.name.partition(".")[0] in roots
        or call.name in names
        or "shell" in call.given
        or call.given.get("allow_pickle", "False") != "False"
        or (call.name == "torch.load" and call.given.get("weights_only") != "True")
    ] == []


# ---- nothing calls home


def test_every_command_switches_the_telemetry_of_dependencies_off() -> None:
    code = (
        "import os, sys\nfrom observer.cli import main\n"
        "try: main(['memory', 'show', 'none.sqlite'])\nexcept SystemExit: pass\n"
        "from huggingface_hub import constants\n"
        "import json; print(json.dumps([dict(os.environ), constants.HF_HUB_DISABLE_TELEMETRY]))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    own = clean | {"WANDB_ERROR_REPORTING": "true"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, cwd=PROJECT_ROOT)
    environment, is_off = json.loads(done.stdout)
    assert {name: environment[name] for name in SWITCHES} == SWITCHES | {"WANDB_ERROR_REPORTING": "true"}
    assert is_off is True


def test_the_switches_stand_in_one_place() -> None:
    telling = {path.name for path in SOURCES for name in SWITCHES if name in path.read_text(encoding="utf-8")}
    assert telling == {"telemetry.py"}


NO_COMMANDS = {
    "observer/ollama/modelfile.py",
    "observer/export/quantize/quantize.py",
    "eval/benchmarks/earlier_engine.py",
    "eval/benchmarks/gpu_check/parts.py",
    "eval/benchmarks/training/child.py",
    "data/make_nano_base.py",
    "tests/trust/fuzz/child.py",
    "tests/trust/load/server.py",
}
"""Started by commands, whose environment they inherit, or by developers on rows of this repository."""


def test_every_script_goes_through_run_cli() -> None:
    texts = {path.relative_to(PROJECT_ROOT).as_posix(): path.read_text(encoding="utf-8") for path in SOURCES}
    scripts = {name for name, text in texts.items() if '__name__ == "__main__"' in text and "run_cli(" not in text}
    assert scripts == NO_COMMANDS


def test_training_reports_to_nobody_unless_asked() -> None:
    assert Config().training.report_to == ()


# ---- downloads are of one commit


def test_shipped_configs_pin_what_they_download() -> None:
    models = {path.name: load_config(path).model for path in sorted((PROJECT_ROOT / "configs").glob("*.yaml"))}
    hub = {name: model for name, model in models.items() if not looks_local(model.base)}
    assert len(hub) >= 4
    assert {name for name, model in hub.items() if not re.fullmatch("[0-9a-f]{40}", model.revision or "")} == set()
    files = {name: model.sha256 for name, model in models.items() if names_gguf(model.base)}
    assert "smollm2.yaml" in files and None not in files.values()


def test_a_download_that_is_not_pinned_is_told_and_kept_with_its_commit(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--Org--Name" / "snapshots" / commit
    hub = Config.model_validate({"model": {"base": "Org/Name"}})
    assert with_commit(hub, folder).model.revision == commit
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "model.revision is not set" in told and commit in told
    pinned = Config.model_validate({"model": {"base": "Org/Name", "revision": commit}})
    local = Config.model_validate({"model": {"base": str(tiny_model)}})
    assert with_commit(pinned, folder) == pinned and with_commit(local, tiny_model) == local
    assert capsys.readouterr().err == ""


def test_the_hub_is_only_asked_for_the_revision_of_the_config() -> None:
    downloads = [call for call in calls() if call.name.endswith(("snapshot_download", "hf_hub_download"))]
    assert [call.given.get("revision") for call in downloads] == ["revision"]
