"""`observer export` makes verified files of whatever it is pointed at, once, and leaves nothing else behind."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from observer.config import Config, DataConfig
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.export.command import add_export_command, command_line
from observer.export.export import ExportPlan, check_disk, export, planned_bytes, remove_leftovers
from observer.export.gguf.header import read_header
from observer.export.gguf.write import gguf_bytes, write_gguf
from observer.export.quantize.imatrix_file import read_imatrix
from observer.export.source import find_source, model_name, training_rows
from observer.paths import PROJECT_ROOT, TRAIN_JSONL
from observer.weights.merge import merge_adapter
from tests.conftest import make_tiny_model
from tests.weights.test_merge import save_adapter


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_model, tmp_path_factory.mktemp("run") / "adapter")


def parse(*arguments: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_export_command(parser.add_subparsers())
    return parser.parse_args(["export", *map(str, arguments)])


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
    with pytest.raises(ObserverError, match=r"its base 'nobody/nothing' is not on this machine; .* --base"):
        find_source(lost)
    with pytest.raises(ObserverError, match=r"--base .*: has no config\.json"):
        find_source(lost, tmp_path)


def test_all_bad_types_are_told_before_anything_is_written(tiny_model: Path, tmp_path: Path) -> None:
    plan = ExportPlan(find_source(tiny_model), tmp_path / "out", ("q4km", "f16", "iq1_s"))
    with pytest.raises(ObserverError, match=r"'q4km'(.|\n)*'iq1_s'"):
        export(plan)
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
    assert names_in(out) == files | {"export.json", "export.md"}
    assert read_header(out / f"{name}-q4_k_m.gguf").tensor_types["blk.0.ffn_down.weight"] == "Q6_K"

    merge_adapter(adapter, tiny_model, tmp_path / "merged")
    expected = write_gguf(tmp_path / "merged", tmp_path / "expected.gguf", "f16", name=name)
    assert (out / f"{name}-f16.gguf").read_bytes() == expected.read_bytes()

    report = (out / "export.md").read_text()
    assert f"`{command_line(args)}`" in report
    for check in ("changed: ", "tokens: 96 of 96", "logits: differ", "endings: **warning:** "):
        assert report.count(check) == 2
    assert "greedy answers end" in capsys.readouterr().err  # a random model never does

    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.gguf")}
    assert args.run(args) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.gguf")} == before
    assert capsys.readouterr().out.count("skipped") == 2


def test_types_below_5_bits_get_an_importance_matrix_of_training_rows(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("".join((PROJECT_ROOT / TRAIN_JSONL).read_text().splitlines(keepends=True)[:3]))
    args = parse(tiny_model, "--out", out, "--types", "iq2_xxs,q8_0", "--imatrix-rows", rows)
    assert args.run(args) == 0
    name = find_source(tiny_model).name
    matrix = read_imatrix(out / f"{name}-imatrix.gguf")
    assert matrix.n_rows == 3
    notes = json.loads((out / "export.json").read_text())["stages"]
    assert (notes["iq2_xxs"]["notes"]["has_imatrix"], notes["q8_0"]["notes"]["has_imatrix"]) == (True, False)
    assert f"--imatrix-rows {rows}" in (out / "export.md").read_text()
    capsys.readouterr()
    assert args.run(args) == 0
    assert capsys.readouterr().out.count("skipped") == 3


def test_a_run_s_own_rows_are_what_its_importance_matrix_is_computed_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    rows = tmp_path / "mine.jsonl"
    rows.write_text("")
    (run / "config.yaml").write_text(Config().model_copy(update={"data": DataConfig(train=rows)}).to_yaml())
    assert training_rows(run) == training_rows(run / "adapter") == rows
    rows.unlink()
    assert training_rows(run) is None


def test_a_changed_source_is_exported_again(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(shutil.copytree(adapter, tmp_path / "own"))
    plan = ExportPlan(find_source(own), tmp_path / "out", ("q8_0",), keeps_merged=True)
    export(plan)
    assert names_in(plan.out) == {"own-q8_0.gguf", "own-merged", "export.json"}
    before = plan.path("q8_0").read_bytes()
    config = json.loads((own / "adapter_config.json").read_text())
    (own / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2}))
    export(plan)
    assert plan.path("q8_0").read_bytes() != before


def test_a_file_that_fails_a_check_never_gets_its_name(tiny_model: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(tiny_model, tmp_path / "same"))
    plan = ExportPlan(find_source(same, tiny_model), tmp_path / "out", ("f16", "q8_0"))
    with pytest.raises(ObserverError, match=r"f16\.gguf\.unverified: changed: every weight(.|\n)*q8_0\.gguf") as error:
        export(plan)
    assert len(str(error.value).splitlines()) == 2
    assert names_in(plan.out) == {"same-f16.gguf.unverified", "same-q8_0.gguf.unverified"}


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
    assert names_in(out) == {f"{adapter.parent.name}-f16.gguf", "export.json", "export.md"}


def test_leftovers_of_the_living_are_not_touched(tmp_path: Path) -> None:
    ours = (f".x-f16.gguf.unverified.{os.getpid()}.tmp", f".export-{os.getpid()}-abc", ".hidden", "x-f16.gguf")
    dead = 2**22 + 1  # beyond Linux's highest process number
    for name in (*ours, f".x-f16.gguf.unverified.{dead}.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / f".export-{dead}-abc").mkdir()
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == set(ours)


def make_huge_model(folder: Path, tiny_model: Path) -> Path:
    """A model of 10 TB, nearly all of them a hole in its file."""
    shutil.copytree(tiny_model, folder)
    inner = 13 * 10**9 // 4
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "layer_types": ["full_attention"], "intermediate_size": inner}
    (folder / "config.json").write_text(json.dumps(config))
    grown: dict[str, list[int]] = {"down_proj": [256, inner], "gate_proj": [inner, 256], "up_proj": [inner, 256]}
    path, stop, entries = folder / "model.safetensors", 0, {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        shapes = {name: entry["shape"] for name, entry in json.loads(file.read(length)).items() if name[0] != "_"}
    for name, shape in shapes.items():
        if ".layers.1." in name:
            continue
        shape = grown.get(name.split(".")[-2]) or shape
        start, stop = stop, stop + 4 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + stop)
    return folder


def test_a_disk_that_is_too_small_is_noticed_before_writing(tiny_model: Path, tmp_path: Path) -> None:
    huge = make_huge_model(tmp_path / "huge", tiny_model)
    out = tmp_path / "out"
    message = r"MB needed, [\d,]+ MB free; free some space, ask for fewer types, or name another folder with --out"
    with pytest.raises(ObserverError, match=message):
        export(ExportPlan(find_source(huge), out, ("f16",)))
    assert not names_in(out)


def test_the_plan_bounds_what_is_written(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    plan = ExportPlan(find_source(adapter), tmp_path, ("q4_k_m", "q8_0"))
    sizes = planned_bytes(plan)
    assert list(sizes) == [
        "q4_k_m", "q8_0", "16-bit intermediate, deleted at the end", "merged model, deleted at the end"
    ]  # fmt: skip
    for file_type in ("q8_0", "f16", "bf16", "f32"):
        written = write_gguf(tiny_model, tmp_path / "written.gguf", file_type, name="x").stat().st_size
        assert 0.8 * gguf_bytes(tiny_model, file_type) < written <= gguf_bytes(tiny_model, file_type)
    check_disk(plan)
    assert list(planned_bytes(ExportPlan(find_source(tiny_model), tmp_path, ("f16", "q4_k_m")))) == ["f16", "q4_k_m"]


def test_usage_errors_name_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--types", ","), ("--tensor-type", "ffn_down")):
        with pytest.raises(SystemExit) as error:
            parse("somewhere", "--out", "out", option, value)
        assert error.value.code == 2
        assert option in capsys.readouterr().err


def test_a_wrong_source_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse(tmp_path / "missing", "--out", tmp_path / "out")
    assert run_cli(lambda: args.run(args), debug=False) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_untied_models_are_exported_too(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    export(ExportPlan(find_source(model), tmp_path / "out", ("bf16",)))
    assert read_header(tmp_path / "out" / "untied-bf16.gguf").tensor_types["output.weight"] == "BF16"
