"""`observer push` against a Hub on loopback: what goes there, what is refused, and what a cut connection costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from observer.config import load_config
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.export.model_card import write_model_card
from observer.export.push_command import plan_push
from observer.files import write_text
from observer.hub import render_plan
from observer.ollama.modelfile import plan_modelfiles, write_all
from observer.paths import NANO_BASE, PROJECT_ROOT, RunPaths
from observer.prompts import Task, prompt_messages, render_prompt
from observer.runs.finished_run import Run, read_run
from tests.support.go_template import render_go_template
from tests.support.hub_server import HubServer, Repository

TOKEN = "hf_canary77aa88bb99cc00dd"
REPO, GGUF = "me/watcher", "nano-q8_0.gguf"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(TOKEN).running() as server:
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two GGUF files of the nano base, a card and an adapter with PEFT's blank card."""
    root = tmp_path_factory.mktemp("push") / "nano"
    config = load_config(PROJECT_ROOT / "configs/nano.yaml", ["export.quantizations=[f16,q8_0]"])
    paths = RunPaths(root, "nano")
    for quantization in ("f16", "q8_0"):
        write_gguf(PROJECT_ROOT / NANO_BASE, paths.gguf(quantization), quantization, name="nano")
    write_text(paths.config, config.to_yaml())
    write_all(plan_modelfiles(paths, config))
    write_model_card(read_run(root))
    paths.adapter.mkdir()
    (paths.adapter / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (paths.adapter / "adapter_config.json").write_text("{}")
    (paths.adapter / "README.md").write_text("# Model Card for Model ID\n")
    return root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    return read_run(shutil.copytree(finished, tmp_path / "outputs" / "nano"))


def push(
    hub: HubServer, run: Run, *more: str, repo: str = REPO, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "observer.cli", "push", str(run.paths.root), "--repo", repo, *more]
    env = hub.environment | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, stdin=-3, env=env)


def test_a_run_goes_to_a_private_repository_that_ollama_can_read(hub: HubServer, run: Run) -> None:
    done = push(hub, run, "--yes")
    assert done.returncode == 0, done.stderr
    found = hub.repositories[REPO]
    assert found.is_private and found.n_commits == 1
    gguf = run.paths.gguf("q8_0")
    assert found.files[gguf.name] == gguf.read_bytes()
    assert found.files["README.md"] == run.paths.model_card.read_bytes()
    modelfiles = {path.name for path in gguf.parent.glob("Modelfile-*")}
    adapter = {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}
    made = {"template", "system", "params"}
    assert {*found.files} == {"nano-f16.gguf", GGUF, "README.md", *modelfiles, *adapter, *made}
    lines = done.stdout.splitlines()
    assert lines[0].endswith("bytes  nano-f16.gguf") and "licence: apache-2.0" in done.stdout
    assert f"{REPO}: a new model repository, private" in lines
    assert lines[-1].startswith(f"ollama run hf.co/{REPO}:Q") or run.config.export.quantizations[-1] not in (
        "q8_0",
        "f16",
    )

    template, system = found.files["template"].decode(), found.files["system"].decode()
    for task in Task:
        exchange = "USER: I moved to Łódź\n  really"
        sent = [{"role": "system", "content": system}, prompt_messages(task, exchange)[-1]]
        assert render_go_template(template, sent) == render_prompt(task, exchange)
    params = json.loads(found.files["params"])
    assert params["temperature"] == 0 and params["num_ctx"] == run.config.export.num_ctx
    assert params["stop"] == ["<|im_end|>", "<|im_start|>"]


def test_the_plan_comes_first_and_nobody_to_ask_is_no_yes(hub: HubServer, run: Run) -> None:
    done = push(hub, run)
    assert done.returncode == 1 and "add --yes" in done.stderr and "nano-f16.gguf" in done.stdout
    assert hub.repositories == {} and hub.objects == {}


def test_a_cut_connection_is_tried_again(hub: HubServer, run: Run) -> None:
    hub.n_cuts = 2
    done = push(hub, run, "--yes")
    assert done.returncode == 0, done.stderr
    assert hub.n_cuts == 0 and hub.repositories[REPO].files[GGUF] == run.paths.gguf("q8_0").read_bytes()


@pytest.mark.slow  # huggingface_hub tries for 24 seconds
def test_a_connection_that_stays_cut_is_one_line(hub: HubServer, run: Run) -> None:
    hub.n_cuts = 1000
    done = push(hub, run, "--yes")
    assert (done.returncode, done.stderr.count("error: ")) == (1, 1) and "Traceback" not in done.stderr
    assert done.stderr.endswith("; run the same again: what has arrived is not sent twice\n")
    hub.n_cuts = 0
    assert push(hub, run, "--yes").returncode == 0


def test_a_push_that_was_killed_sends_only_what_has_not_arrived(hub: HubServer, run: Run) -> None:
    hub.holds = largest = run.paths.gguf("f16").stat().st_size
    command = [sys.executable, "-m", "observer.cli", "push", str(run.paths.root), "--repo", REPO, "--yes"]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=hub.environment, stdout=-3, stderr=-3)
    hub.wait_until_held(n_sent=2)
    process.kill()
    process.wait()
    assert hub.repositories[REPO].files == {}  # nothing is seen there before the end
    assert sorted(hub.sent) == sorted([7000, run.paths.gguf("q8_0").stat().st_size])
    hub.holds = None
    hub.sent.clear()
    assert push(hub, run, "--yes").returncode == 0
    assert hub.sent == [largest]
    hub.sent.clear()
    assert push(hub, run, "--yes").returncode == 0  # and once more: there is nothing to do
    assert hub.sent == [] and hub.repositories[REPO].n_commits == 1


def test_a_public_repository_is_filled_only_when_that_is_asked(hub: HubServer, run: Run) -> None:
    hub.repositories[REPO] = Repository("model", is_private=False)
    refused = push(hub, run, "--yes")
    assert refused.returncode == 1 and "add --public" in refused.stderr and hub.repositories[REPO].files == {}
    assert push(hub, run, "--yes", "--public").returncode == 0 and hub.repositories[REPO].files
    del hub.repositories[REPO]
    assert push(hub, run, "--yes", "--public").returncode == 0 and not hub.repositories[REPO].is_private


@pytest.mark.parametrize(("status", "what"), [(403, "hf auth login"), (400, "run the same again")])
def test_no_token_reaches_a_message_or_a_traceback(hub: HubServer, run: Run, status: int, what: str) -> None:
    """Of a Hub that repeats it, with --debug and huggingface_hub's own debug log."""
    hub.refusal = (status, f"no commits for {TOKEN}")
    command = [sys.executable, "-m", "observer.cli", "--debug", "push", str(run.paths.root), "--repo", REPO, "--yes"]
    env = hub.environment | {"HF_DEBUG": "1", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=env)
    assert done.returncode == 1 and what in done.stderr and "Traceback" in done.stderr
    assert "no commits for …" in done.stderr and TOKEN not in done.stdout + done.stderr


def test_a_wrong_token_and_none_are_one_line(hub: HubServer, run: Run) -> None:
    for token in ("hf_wrong", ""):
        done = push(hub, run, "--yes", HF_TOKEN=token, HF_HOME=str(run.paths.root / "no-token"))
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "hf auth login" in done.stderr and "hf_wrong" not in done.stderr


def test_what_would_end_empty_or_without_a_card_is_refused(run: Run) -> None:
    card = run.paths.model_card.read_text(encoding="utf-8")
    run.paths.model_card.unlink()
    with pytest.raises(ObserverError, match="no such card"):
        plan_push(run, REPO)
    write_text(run.paths.model_card, card)
    (run.paths.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ObserverError, match="no weights are here"):
        plan_push(run, REPO)
    assert plan_push(run, REPO, "none").files
    for path in run.paths.gguf("").parent.glob("*.gguf"):
        path.unlink()
    with pytest.raises(ObserverError, match="export the run first"):
        plan_push(run, REPO)


def test_folders_of_this_machine_are_told_before_anybody_reads_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "folders of yours" not in render_plan(plan_push(run, REPO))
    monkeypatch.setenv("HOME", str(tmp_path))
    (run.paths.adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": f"{tmp_path}/base"}))
    assert f"these name folders of yours ({tmp_path}): adapter/adapter_config.json" in render_plan(plan_push(run, REPO))


def test_a_name_without_an_owner_is_told(hub: HubServer, run: Run) -> None:
    done = push(hub, run, "--yes", repo="watcher")
    assert done.returncode == 1 and "USER/NAME is expected" in done.stderr
