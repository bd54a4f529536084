"""train_sft.py as a user meets it: the whole road once, nothing twice, and one clear line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from observer.config import load_config
from observer.console.run import run_cli
from tests.support.tiny_runs import write_tiny_run
from train_sft import main, parse_arguments

Captured = pytest.CaptureFixture[str]
STAGES = ("train", "merge", "gguf f16", "gguf q8_0", "modelfiles", "evaluate", "model card")


def run(*arguments: str) -> int:
    return run_cli(lambda: main([*arguments]), debug=False)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The config of a run that went all the way."""
    config = write_tiny_run(tmp_path_factory.mktemp("recipe"), tiny_model)
    assert run("--config", str(config)) == 0
    return config


@pytest.mark.slow
def test_one_command_leaves_every_artefact(finished_run: Path) -> None:
    root = finished_run.parent / "outputs" / "tiny"
    for name in (
        "adapter/adapter_model.safetensors", "merged/model.safetensors", "gguf/tiny-f16.gguf", "gguf/tiny-q8_0.gguf",
        "Modelfile", "Modelfile-grade", "Modelfile-extract", "reports/summary.md", "config.yaml", "manifest.json",
        "training.log", "metrics.jsonl", "loss.png",
    ):  # fmt: skip
        assert (root / name).stat().st_size > 0, name
    assert "q8_0" in (root / "reports" / "summary.md").read_text()
    assert set(json.loads((root / "manifest.json").read_text())["stages"]) == set(STAGES)
    modules = json.loads((root / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules), "PEFT's set has another order in each process"
    assert not list(root.rglob(".*")), "no temporary files are left"


@pytest.mark.slow
def test_a_second_run_does_nothing_twice_and_says_so(finished_run: Path, capsys: Captured) -> None:
    root = finished_run.parent / "outputs" / "tiny"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert run("--config", str(finished_run)) == 0
    printed = capsys.readouterr().out
    for stage in STAGES:
        assert f"{stage}: done before on the same inputs, skipped" in printed
    assert "ollama create tiny -f" in printed and "| q8_0" in printed
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert {path for path in before if after[path] != before[path]} == {root / "config.yaml", root / "run.lock"}


@pytest.mark.slow
def test_a_deleted_artefact_is_made_again_without_training_again(finished_run: Path, capsys: Captured) -> None:
    (finished_run.parent / "outputs" / "tiny" / "gguf" / "tiny-q8_0.gguf").unlink()
    assert run("--config", str(finished_run)) == 0
    printed = capsys.readouterr().out
    assert "train: done before" in printed and "gguf q8_0: done in" in printed


@pytest.mark.parametrize(
    ("arguments", "place", "fix"),
    [
        (["--set", "training.learning_rat=1"], "--set training.learning_rat=1", "learning_rate"),
        (["--set", "run.device=cuda"], "run.device: cuda", "configs/nano.yaml"),
        (["--set", "model.base=data/no-such-base"], "data/no-such-base: no such folder", "model.base"),
        (["--set", "model.base=./elsewhere"], "./elsewhere: no such folder", "model.base"),
        (["--set", "data.train=none.jsonl"], "none.jsonl: no such file", "observer data generate"),
        (["--set", "data.max_length=100"], "train.jsonl:1:", "raise data.max_length"),
        (["--set", "export.quantizations=[q9_z]"], "unknown quantization 'q9_z'", "q8_0"),
        (["--set", "training.optim=adam"], "training.optim: unknown optimizer 'adam'", "adamw_torch"),
        (["--set", "training.optim=adamw_8bit"], "training.optim: adamw_8bit needs CUDA", "adamw_torch"),
        (["--run-name", ""], "run.name: string should match pattern", "A-Za-z0-9"),
        (["--resume"], "checkpoints: no checkpoint to resume from", "without --resume"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_with_the_place_and_the_mend(
    tmp_path: Path, tiny_model: Path, capsys: Captured, arguments: list[str], place: str, fix: str
) -> None:
    config = write_tiny_run(tmp_path, tiny_model)
    assert run("--config", str(config), *arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and place in message.splitlines()[0] and fix in message.splitlines()[0]
    root = tmp_path / "outputs" / "tiny"
    assert {path.name for path in root.glob("*")} <= {"config.yaml", "run.lock"}, "nothing half-written"


def test_a_base_without_safetensors_is_refused(tmp_path: Path, tiny_model: Path, capsys: Captured) -> None:
    base = tmp_path / "pickled"
    base.mkdir()
    (base / "config.json").write_text((tiny_model / "config.json").read_text())
    (base / "pytorch_model.bin").write_bytes(b"never unpickled")
    assert run("--config", str(write_tiny_run(tmp_path, base))) == 1
    assert "has no tokenizer.json, *.safetensors" in capsys.readouterr().err


def test_an_output_folder_in_whose_way_a_file_lies_is_named(tmp_path: Path, tiny_model: Path, capsys: Captured) -> None:
    config = write_tiny_run(tmp_path, tiny_model)
    (tmp_path / "outputs").write_text("a file")
    assert run("--config", str(config)) == 1
    assert "a file is in the way" in capsys.readouterr().err


def test_wrong_usage_exits_2() -> None:
    with pytest.raises(SystemExit) as left:
        main(["--config", "configs/nano.yaml", "--vocab", "x.gguf"])
    assert left.value.code == 2


@pytest.mark.parametrize("name", ["2026-11-29", "3", "1.5", "on", "null"])
def test_a_run_name_is_text_whatever_yaml_would_make_of_it(tmp_path: Path, name: str) -> None:
    path = write_tiny_run(tmp_path, tmp_path)
    args = parse_arguments(["--config", str(path), "--run-name", name])
    assert load_config(path, args.overrides).run.name == name
