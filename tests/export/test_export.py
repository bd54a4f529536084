"""`observer export` makes verified files of whatever it is pointed at, once, and leaves nothing else behind."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.quantizations.files import build, wanted_files
from observer.config import Config
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.export.command import add_export_command
from observer.export.export import ExportPlan, File, check_disk, export, files_of, planned_bytes
from observer.export.gguf.write import gguf_bytes, write_gguf
from observer.export.quantize.imatrix import Calibration, calibration_of
from observer.export.quantize.imatrix_file import read_imatrix
from observer.export.source import find_source, model_name, rows_for_imatrix
from observer.export.stages import export_stages
from observer.files import remove_leftovers, write_jsonl
from observer.paths import PROJECT_ROOT, TRAIN_JSONL, RunPaths
from observer.runs.finished_run import Run, read_run
from observer.runs.manifest import Manifest
from observer.weights.gguf_header import read_header
from observer.weights.merge import merge_adapter
from tests.support.models import save_adapter
from tests.support.tiny_runs import raw_rows, split_rows, write_tiny_run


def parse(*arguments: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_export_command(parser.add_subparsers())
    return parser.parse_args(["export", *map(str, arguments)])


def plan_for(folder: Path, out: Path, *types: str, base: Path | None = None, keeps_merged: bool = False) -> ExportPlan:
    files = files_of(types, {}, has_imatrix=False)
    return ExportPlan(find_source(folder, base), out, files, keeps_merged=keeps_merged)


def export_alone(plan: ExportPlan) -> None:
    export(plan, Manifest(plan.out / "export.json"))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# What SOURCE may be.


def test_an_adapter_knows_its_base_and_a_run_knows_its_adapter(adapter: Path, tiny_model: Path) -> None:
    run = adapter.parent.name
    source = find_source(adapter)
    assert (source.name, source.model, source.adapter, source.base) == (run, None, adapter, tiny_model)
    assert find_source(adapter.parent) == source
    assert set(source.inputs) == {"adapter", "base"}


def test_a_run_with_a_merged_model_is_that_model(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "run" / "adapter")
    merged = Path(shutil.copytree(tiny_model, tmp_path / "run" / "merged"))
    source = find_source(tmp_path / "run")
    assert (source.name, source.model, source.base) == ("run", merged, tiny_model)
    assert set(source.inputs) == {"model", "base"}
    assert find_source(merged).base is None


def test_a_checkpoint_is_an_adapter_with_the_name_of_its_run(adapter: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(adapter, tmp_path / "run" / "checkpoints" / "checkpoint-20"))
    source = find_source(checkpoint)
    assert (source.name, source.adapter) == ("run-checkpoint-20", checkpoint)
    shutil.copytree(adapter, tmp_path / "run" / "checkpoints" / "checkpoint-3")
    for unfinished in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        with pytest.raises(ObserverError, match=r"name a checkpoint, such as .*checkpoint-20$"):
            find_source(unfinished)


@pytest.mark.parametrize(
    ("place", "name"),
    [("a/nano", "nano"), ("a/nano/adapter", "nano"), ("a/nano/merged", "nano"), ("a/b/checkpoint-7", "b-checkpoint-7")],
)  # fmt: skip
def test_files_are_named_after_the_model(place: str, name: str) -> None:
    assert model_name(Path(place)) == name


def test_what_cannot_be_exported_is_told_with_what_to_do(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ObserverError, match="no such folder; name a run"):
        find_source(tmp_path / "missing")
    with pytest.raises(ObserverError, match=r"has neither config\.json nor adapter_config\.json"):
        find_source(tmp_path)
    lost = Path(shutil.copytree(adapter, tmp_path / "lost"))
    config = json.loads((lost / "adapter_config.json").read_text()) | {"base_model_name_or_path": "nobody/nothing"}
    (lost / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ObserverError, match=r"its base 'nobody/nothing' is not on this machine \(.*\); or .* --base"):
        find_source(lost)
    with pytest.raises(ObserverError, match=r"--base .*: has no config\.json"):
        find_source(lost, tmp_path)


def test_all_bad_types_are_told_before_anything_is_written(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny_model, tmp_path / "out", "q4km", "f16", "iq1_s")
    with pytest.raises(ObserverError, match=r"'q4km'(.|\n)*'iq1_s'"):
        export_alone(plan)
    assert not (tmp_path / "out").exists()


# What comes out.


def test_an_adapter_becomes_files_of_every_type_and_leaves_nothing_else(
    adapter: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--tensor-type", "ffn_down=q6_k", "--imatrix", "none")
    args = parse(adapter, "--out", out, "--types", "q4_k_m,f16", *options)
    assert args.run(args) == 0
    name = adapter.parent.name
    files = {f"{name}-{file_type}.gguf" for file_type in ("f16", "q4_k_m")}
    modelfiles = {f"Modelfile-{name}" for file_type in ("f16", "q4_k_m")
                  for name in (file_type, f"{file_type}-grade", f"{file_type}-extract")}  # fmt: skip
    assert names_in(out) == files | modelfiles | {"export.json", "export.md"}
    assert f"\nFROM ./{name}-q4_k_m.gguf\n" in (out / "Modelfile-q4_k_m-grade").read_text()
    assert read_header(out / f"{name}-q4_k_m.gguf").tensor_types["blk.0.ffn_down.weight"] == "Q6_K"

    merge_adapter(adapter, tiny_model, tmp_path / "merged")
    expected = write_gguf(tmp_path / "merged", tmp_path / "expected.gguf", "f16", name=name)
    assert (out / f"{name}-f16.gguf").read_bytes() == expected.read_bytes()

    report = (out / "export.md").read_text()
    assert "\n- command: `observer" in report
    for check in ("changed: ", "tokens: 96 of 96", "logits: differ", "endings: **warning:** "):
        assert report.count(check) == 2
    assert "greedy answers end" in capsys.readouterr().err  # a random model never does

    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.gguf")}
    assert args.run(args) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.gguf")} == before
    assert capsys.readouterr().out.count("skipped") == 2


def test_types_below_5_bits_get_an_importance_matrix_of_training_rows(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["observer", "export", str(tiny_model), "--imatrix-rows", str(rows)])
    rows.write_text("".join((PROJECT_ROOT / TRAIN_JSONL).read_text().splitlines(keepends=True)[:3]))
    args = parse(tiny_model, "--out", out, "--types", "iq2_xxs,q8_0", "--imatrix-rows", rows)
    assert args.run(args) == 0
    name = find_source(tiny_model).name
    matrix = read_imatrix(out / f"{name}-imatrix.gguf")
    assert matrix.n_rows == 3
    notes = json.loads((out / "export.json").read_text())["stages"]
    assert [notes[f"gguf {name}"]["notes"]["has_imatrix"] for name in ("iq2_xxs", "q8_0")] == [True, False]
    assert f"`observer export {tiny_model} --imatrix-rows {rows}`" in (out / "export.md").read_text()
    capsys.readouterr()
    assert args.run(args) == 0
    assert capsys.readouterr().out.count("skipped") == 3


def test_a_run_s_own_rows_are_what_its_importance_matrix_is_computed_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    rows = tmp_path / "mine.jsonl"
    rows.write_text("")
    config = Config.model_validate({"data": {"train": rows}, "export": {"imatrix_rows": 7}, "run": {"seed": 3}})
    (run / "config.yaml").write_text(config.to_yaml())
    found = rows_for_imatrix(run)
    assert found == rows_for_imatrix(run / "adapter") == Calibration((rows,), n_rows=7, seed=3)
    rows.unlink()
    assert rows_for_imatrix(run) is None


def test_the_rows_of_an_importance_matrix_are_those_that_were_trained(tmp_path: Path) -> None:
    split, raw = tmp_path / "train.jsonl", tmp_path / "more.jsonl"
    write_jsonl(split, split_rows(2))
    write_jsonl(
        raw, [row | {"source": f"natural/{part}"} for row, part in zip(raw_rows(2), ("train", "val"), strict=True)]
    )
    config = Config.model_validate({"data": {"train": split, "more": [raw]}})
    rows = calibration_of(Run(config, RunPaths(tmp_path, "run"))).read()
    assert [row["id"] for row in rows] == ["row-0", "row-1", "row-0"]  # of the raw ones the other is held out
    own = Config.model_validate({"data": {"utility": raw, "more": [raw]}})
    assert calibration_of(Run(own, RunPaths(tmp_path, "run"))).files == (tmp_path / "data" / "train.jsonl", raw)


def test_a_changed_source_is_exported_again(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(shutil.copytree(adapter, tmp_path / "own"))
    plan = plan_for(own, tmp_path / "out", "q8_0", keeps_merged=True)
    export_alone(plan)
    assert names_in(plan.out) == {"own-q8_0.gguf", "own-merged", "export.json"}
    before = plan.path(plan.files[0]).read_bytes()
    config = json.loads((own / "adapter_config.json").read_text())
    (own / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2}))
    export_alone(plan)
    assert plan.path(plan.files[0]).read_bytes() != before


def test_a_merged_model_is_kept_beside_files_that_are_there_already(adapter: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(adapter, tmp_path / "own"))
    export_alone(plan_for(own, tmp_path / "out", "q8_0"))
    plan = plan_for(own, tmp_path / "out", "q8_0", keeps_merged=True)
    plan.merged.mkdir()  # of another export, and not this adapter's
    before = plan.path(plan.files[0]).stat().st_mtime_ns
    export_alone(plan)
    assert (plan.merged / "model.safetensors").is_file()
    assert plan.path(plan.files[0]).stat().st_mtime_ns == before


def untrained_run(folder: Path, base: Path) -> Path:
    """A run whose merged model is its base."""
    root = folder / "outputs" / "tiny"
    save_adapter(base, root / "adapter")
    shutil.copytree(base, root / "merged")
    shutil.copy(write_tiny_run(folder, base), root / "config.yaml")
    return root


def by_training(root: Path, base: Path) -> Path:
    export_stages(read_run(root), base, "cpu", Manifest(root / "manifest.json"))
    return root / "gguf"


def by_command(root: Path, base: Path) -> Path:
    args = parse(root, "--out", root / "gguf", "--types", "f16,q8_0", "--base", base)
    args.run(args)
    return root / "gguf"


def by_benchmark(root: Path, base: Path) -> Path:
    build(read_run(root), wanted_files(["q8_0"], "both"), root)
    return root / "gguf"


def test_a_file_that_fails_a_check_never_gets_its_name(tiny_model: Path, tmp_path: Path) -> None:
    root = untrained_run(tmp_path, tiny_model)
    with pytest.raises(ObserverError, match=r"f16\.gguf\.unverified: changed: every weight(.|\n)*q8_0\.gguf") as error:
        by_training(root, tiny_model)
    assert len(str(error.value).splitlines()) == 2
    assert names_in(root / "gguf") == {"tiny-f16.gguf.unverified", "tiny-q8_0.gguf.unverified"}


@pytest.mark.parametrize("make", [by_training, by_command, by_benchmark])
def test_every_file_is_compared_with_transformers_whoever_makes_it(
    tiny_model: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    root = untrained_run(tmp_path, tiny_model)
    merge_adapter(root / "adapter", tiny_model, root / "merged")
    folder = make(root, tiny_model)
    (record,) = [*root.glob("manifest.json"), *folder.glob("export.json")]
    stages = json.loads(record.read_text())["stages"]
    for name in ("f16", "q8_0"):
        checks = stages[f"gguf {name}"]["notes"]["checks"]
        assert [check["name"] for check in checks] == ["changed", "tokens", "logits", "endings"]
        assert (folder / f"tiny-{name}.gguf").exists()


WITH_UNSLOTH = """
import sys
from pathlib import Path
from types import SimpleNamespace
import unsloth
from observer.weights.merge import merge_adapter
from tests.export.test_export import by_training
root, base = map(Path, sys.argv[1:])
try:
    by_training(root, base)
except SystemExit as end:
    assert end.code == 1
else:
    raise AssertionError("the merged model is the base")
merge_adapter(root / "adapter", base, root / "merged")
by_training(root, base)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("unsloth") is None, reason="needs unsloth")
def test_where_unsloth_has_changed_transformers_a_new_process_exports(tiny_model: Path, tmp_path: Path) -> None:
    root = untrained_run(tmp_path, tiny_model)
    command = [sys.executable, "-c", WITH_UNSLOTH, str(root), str(tiny_model)]
    environment = os.environ | {"UNSLOTH_FORCE_CPU": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == 1 and "changed: every weight" in done.stderr
    assert "gguf q8_0: done" in done.stdout and (root / "gguf" / "Modelfile-q8_0").exists()


# What may go wrong.

LIMITED = """
import argparse, resource, signal, sys
from observer.console.run import run_cli
from observer.export.command import add_export_command
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
parser = argparse.ArgumentParser()
add_export_command(parser.add_subparsers())
args = parser.parse_args(sys.argv[2:])
sys.exit(run_cli(lambda: args.run(args), debug=True))
"""


@pytest.mark.slow
def test_a_killed_export_leaves_no_file_under_a_final_name_and_a_second_run_completes_it(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out, q8_0 = tmp_path / "out", gguf_bytes(tiny_model, "q8_0")
    arguments = ["export", adapter, "--out", out, "--types", "f16"]
    command = [sys.executable, "-c", LIMITED, str(q8_0), *map(str, arguments)]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert killed.returncode == -signal.SIGXFSZ, killed.stderr
    assert names_in(out) and not any(re.fullmatch(r"[^.].*\.gguf|export\.json", name) for name in names_in(out))
    args = parse(*arguments[1:])
    assert args.run(args) == 0
    modelfiles = {"Modelfile-f16", "Modelfile-f16-grade", "Modelfile-f16-extract"}
    assert names_in(out) == {f"{adapter.parent.name}-f16.gguf", *modelfiles, "export.json", "export.md"}


def test_leftovers_of_the_living_are_not_touched(tmp_path: Path) -> None:
    ours = (f".x-f16.gguf.unverified.{os.getpid()}.tmp", f".export-abc.{os.getpid()}.tmp", ".hidden", "x-f16.gguf")
    dead = 2**22 + 1  # beyond Linux's highest process number
    for name in (*ours, f".x-f16.gguf.unverified.{dead}.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / f".export-abc.{dead}.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == set(ours)


def test_a_disk_that_is_too_small_is_noticed_before_writing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    out = tmp_path / "out"
    args = parse(tiny_model, "--out", out, "--types", "f16")
    message = r"MB needed, [\d,]+ MB free; free some space, ask for fewer types, or name another folder with --out"
    with pytest.raises(ObserverError, match=message):
        args.run(args)
    assert not names_in(out)


def test_the_plan_bounds_what_is_written(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_for(adapter, tmp_path, "q4_k_m", "q8_0")
    sizes = planned_bytes(plan)
    assert list(sizes) == [
        "q4_k_m", "q8_0", "16-bit intermediate, deleted at the end", "merged model, deleted at the end"
    ]  # fmt: skip
    for file_type in ("q8_0", "f16", "bf16", "f32"):
        written = write_gguf(tiny_model, tmp_path / "written.gguf", file_type, name="x").stat().st_size
        assert 0.8 * gguf_bytes(tiny_model, file_type) < written <= gguf_bytes(tiny_model, file_type)
    check_disk(plan, "")
    assert list(planned_bytes(plan_for(tiny_model, tmp_path, "f16", "q4_k_m"))) == ["f16", "q4_k_m"]
    widened = planned_bytes(replace(plan, files=(File("q2_k", "q2_k"),), overrides={".": "f32"}))
    assert widened["q2_k"] == gguf_bytes(tiny_model, "f32")


def test_usage_errors_name_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--types", ","), ("--tensor-type", "ffn_down")):
        with pytest.raises(SystemExit) as error:
            parse("somewhere", "--out", "out", option, value)
        assert error.value.code == 2
        assert option in capsys.readouterr().err


def test_a_wrong_source_or_importance_matrix_is_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    for source, imatrix in ((missing, "auto"), (tiny_model, missing)):
        args = parse(source, "--out", tmp_path / "out", "--imatrix", imatrix)
        assert run_cli(lambda args=args: args.run(args), debug=False) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"error: {missing}: no such f") and message.count("\n") == 1
