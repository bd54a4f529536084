"""`observer export` of folders that are not whole: one line that names the file and what to do, and nothing written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from observer.console.run import run_cli
from tests.export.test_export import parse
from tests.support.models import Spoil, edit_json

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 11422654\n"


def without(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def holding(name: str, text: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def with_vocabulary_files_only(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]))
    (folder / "tokenizer.json").unlink()


def with_index(*shards: str) -> Spoil:
    """The weights in shards of which only the first is there."""

    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / shards[0])
        names = {f"tensor.{number}": shard for number, shard in enumerate(shards)}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))

    return spoil


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def dangling(name: str) -> Spoil:
    """A link into a cache that was cleared."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "blobs" / "gone")

    return spoil


def as_folder(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


TOKENIZER = r"tokenizer\.json: no such file; copy it from the model's base, or save one there"
MODELS: dict[str, tuple[Spoil, str]] = {
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"), TOKENIZER),
    "no tokenizer.json": (without("tokenizer.json"), TOKENIZER),
    "vocab.json and merges.txt": (with_vocabulary_files_only, TOKENIZER),
    "a tokenizer.json that leads nowhere": (dangling("tokenizer.json"), TOKENIZER),
    "a tokenizer.json that is a folder": (as_folder("tokenizer.json"), TOKENIZER),
    "a tokenizer.json that was not fetched": (holding("tokenizer.json", POINTER), r"tokenizer\.json: .*git lfs pull"),
    "a cut tokenizer.json": (cut("tokenizer.json"), r"tokenizer\.json:\d+: not JSON"),
    "an empty tokenizer.json": (holding("tokenizer.json", ""), r"tokenizer\.json:1: not JSON"),
    "a tokenizer.json of nothing": (holding("tokenizer.json", "{}"), "no byte-level BPE|cannot read it"),
    "a cut tokenizer_config.json": (holding("tokenizer_config.json", '{"eos'), r"tokenizer_config\.json:1: not JSON"),
    "an empty folder": (emptied, r"has neither config\.json nor adapter_config\.json"),
    "a config without weights": (without(WEIGHTS), r"model\.safetensors: no such file"),
    "weights without a config": (without("config.json"), r"has neither config\.json nor adapter_config\.json"),
    "weights of torch": (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "only safetensors"),
    "weights that lead nowhere": (dangling(WEIGHTS), r"model\.safetensors: no such file"),
    "weights that were not fetched": (holding(WEIGHTS, POINTER), r"model\.safetensors: .*git lfs pull"),
    "empty weights": (holding(WEIGHTS, b""), r"model\.safetensors: not a whole safetensors file"),
    "cut weights": (cut(WEIGHTS), r"model\.safetensors: not a whole safetensors file"),
    "a shard is missing": (with_index("one.safetensors", "two.safetensors"), r"two\.safetensors: no such file"),
    "an index of nothing": (holding(f"{WEIGHTS}.index.json", "{}"), "weight_map is to name files"),
    "an empty config": (holding("config.json", "{}"), r"config\.json: model_type is 'None'"),
    "a cut config": (holding("config.json", "{\n"), r"config\.json:\d+: not JSON"),
    "a config of other layers": (edit_json("config.json", num_hidden_layers=3), r"layers\.2\..* is missing"),
    "a config that transformers cannot read": (edit_json("config.json", layer_types=[None]), "cannot read it"),
}  # fmt: skip


def refusal(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str | Path) -> str:
    """What `observer export` says when it fails; no file has its final name."""
    args = parse(*arguments, "--out", out, "--types", "q8_0")
    assert run_cli(lambda: args.run(args), debug=False) == 1
    assert not list(out.glob("*.gguf"))
    (error,) = re.findall(r"^error: .*(?:\n(?!export: ).+)*", capsys.readouterr().err, re.MULTILINE)
    return error


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_is_not_whole(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, message = MODELS[case]
    spoil(copy)
    assert re.search(message, refusal(capsys, tmp_path / "out", copy))


@pytest.mark.parametrize("case", [name for name in MODELS if "config" not in name or "tokenizer" in name])
def test_an_adapter_over_a_base_that_is_not_whole(
    copy: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, message = MODELS[case]
    spoil(copy)
    if case == "an empty folder":
        message = r"--base .*: has no config\.json"
    assert re.search(message, refusal(capsys, tmp_path / "out", adapter, "--base", copy))


ADAPTERS: dict[str, tuple[Spoil, str]] = {
    "no weights": (without("adapter_model.safetensors"), r"adapter_model\.safetensors: no such file; save it again"),
    "empty weights": (holding("adapter_model.safetensors", b""), "not a whole safetensors file"),
    "cut weights": (cut("adapter_model.safetensors"), "not a whole safetensors file"),
    "weights that were not fetched": (holding("adapter_model.safetensors", POINTER), "git lfs pull"),
    "a cut config": (holding("adapter_config.json", "{\n"), r"adapter_config\.json:\d+: not JSON"),
    "an empty config": (holding("adapter_config.json", "{}"), "r is None"),
    "a cut tokenizer.json of its own": (holding("tokenizer.json", '{"model'), r"adapter/tokenizer\.json:1: not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_is_not_whole(
    tiny_model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, message = ADAPTERS[case]
    spoil(Path(shutil.copytree(adapter, tmp_path / "adapter")))
    assert re.search(message, refusal(capsys, tmp_path / "out", tmp_path / "adapter", "--base", tiny_model))


def test_an_adapter_with_a_tokenizer_needs_none_of_its_base(
    copy: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).rename(own / name)
    args = parse(own, "--base", copy, "--out", tmp_path / "out", "--types", "q8_0")
    assert run_cli(lambda: args.run(args), debug=False) == 0, capsys.readouterr().err
