"""Every code block of the README and of docs/ works as it stands, and every link leads somewhere.

Blocks of a page run in their order, in a folder of their own with the files that a reader would have: the project's, a
run `outputs/nano` over the committed nano base, conversations. Python and `observer` run here; what trains, converts,
serves or installs is checked: programs, arguments, configs and files (tests/support/docs_commands.py).
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from observer.config import Config, load_config
from observer.data.importing import sort_out
from observer.data.raw_rows import parse_line
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.export.quantize.quantize import quantize
from observer.files import write_jsonl
from observer.memory.facts import OperationKind, Reason
from observer.memory.rules import EARLIER_STAGES, ONE_AT_A_TIME, OPPOSITES
from observer.ollama.modelfile import VARIANTS, plan_modelfiles, write_all
from observer.paths import NANO_BASE, PROJECT_ROOT, RunPaths
from observer.turns.inputs import Item, Reading, iter_inputs
from tests.observe.test_observe_command import write_chats
from tests.support.docs_blocks import Block, anchors_of, blocks_of, commands_of, links_of, pages
from tests.support.docs_shell import Shell
from tests.support.label_server import LabelServer, Reply
from tests.support.modelfile_parser import parse_modelfile
from tests.support.ollama_server import OllamaServer
from tests.support.tiny_runs import raw_rows
from train_sft import next_steps

SHELL, PYTHON = frozenset({"", "bash", "console"}), "python"
DATA = frozenset({"json", "jsonl", "yaml", "modelfile"})
PLAIN = frozenset({"text"})
OLLAMA_MODELS = ("observer", "observer-grade", "observer-extract", "qwen3-observer")
LINKED = ("configs", "docs", "eval", "modelfiles", "models", "notebooks", "train_sft.py", "pyproject.toml")
each_page = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(PROJECT_ROOT)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`outputs/nano` as a training leaves it, with the weights of the nano base as it is."""
    root = tmp_path_factory.mktemp("run") / "nano"
    paths, base = RunPaths(root, "nano"), PROJECT_ROOT / NANO_BASE
    for quantization in ("f16", "q8_0"):
        write_gguf(base, paths.gguf(quantization), quantization, name="nano")
    quantize(paths.gguf("f16"), paths.gguf("q4_k_m"), "q4_k_m")
    write_all(plan_modelfiles(paths, load_config(PROJECT_ROOT / "configs/nano.yaml")))
    for folder in (paths.merged, paths.adapter):
        folder.symlink_to(base)
    return root


@pytest.fixture
def folder(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a reader stands: the project, read-only, with what they made and what they bring."""
    for name in LINKED:
        (tmp_path / name).symlink_to(PROJECT_ROOT / name)
    (tmp_path / "data").mkdir()
    for path in (PROJECT_ROOT / "data").iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "nano").symlink_to(run)
    _bring(tmp_path, run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    with _on_one_core():
        yield tmp_path


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
    """llama.cpp's threads wait for one another by spinning: on a machine that does other work, two are slower."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _bring(folder: Path, run: Path) -> None:
    write_chats(folder / "chats.jsonl", 7)
    for name in ("mine.jsonl", "gold.jsonl", "my-rows.jsonl"):
        write_jsonl(folder / name, raw_rows(24))
    (folder / "some").mkdir()
    (folder / "some" / "adapter").symlink_to(run / "adapter")
    (folder / "downloads").mkdir()
    (folder / "downloads" / "some-model-q4_k_m.gguf").symlink_to(RunPaths(run, "nano").gguf("q4_k_m"))
    (folder / "outputs" / "qwen3-observer" / "merged").mkdir(parents=True)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "Qwen3-0.6B").symlink_to(PROJECT_ROOT / NANO_BASE)


@each_page
def test_every_block_of_the_page_works_as_it_stands(
    page: Path, folder: Path, run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = blocks_of(page)
    if not blocks:
        return
    blobs = tmp_path_factory.mktemp("blobs")
    with OllamaServer(blobs).running() as server, LabelServer(lambda _: Reply()).running() as labels:
        for name in OLLAMA_MODELS:
            server.serve(name, RunPaths(run, "nano").gguf("q8_0"))
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
        shell, names = Shell(folder, server.url, labels.url), {"__name__": "__main__"}
        for block in blocks:
            _work(block, shell, names)


def _work(block: Block, shell: Shell, names: dict[str, Any]) -> None:
    if block.language in SHELL:
        for command in commands_of(block):
            try:
                printed = shell.run(command.text)
            except (AssertionError, SystemExit, Exception) as error:
                raise AssertionError(f"{command.place}: {command.text}\n{error}") from error
            if command.output is not None and printed is not None:
                _compare(command.place, command.output, printed)
    elif block.language == PYTHON:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
    elif block.language in DATA:
        _check_data(block)
    else:
        assert block.language in PLAIN, f"{block.place}: no test knows what to do with {block.language!r}"


def _compare(place: str, expected: str, printed: str) -> None:
    """As doctest does: `...` is anything, and spaces are as good as line breaks."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    is_same = doctest.OutputChecker().check_output(expected + "\n", printed, flags)
    assert is_same, f"{place}: the page shows\n{expected}\nand the command prints\n{printed}"


def _check_data(block: Block) -> None:
    if block.language == "modelfile":
        parse_modelfile(block.text)
    elif block.language == "yaml":
        _check_yaml(block)
    else:
        values = list(_json_values(block.text))
        assert block.language == "jsonl" or values, f"{block.place}: no JSON"
        for value in values:
            if isinstance(value, dict) and {"user_message", "messages"} & value.keys():
                _check_row(block, value)


def _check_yaml(block: Block) -> None:
    value = yaml.safe_load(block.text)
    if isinstance(value, dict) and value.keys() <= Config.model_fields.keys():
        path = Path("block.yaml")
        path.write_text(block.text, encoding="utf-8")
        load_config(path)


def _json_values(text: str) -> list[Any]:
    decoder, at, values = json.JSONDecoder(), 0, []
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        values.append(value)
    return values


def _check_row(block: Block, value: dict[str, Any]) -> None:
    """With gold it is a row to train on, without it one to observe."""
    line = json.dumps(value).encode()
    if {"label", "entities"} & value.keys():
        bad = sort_out([parse_line(block.place, line)], to_related=False).quarantined
        assert not bad, f"{block.place}: {bad[0].reasons}"
    else:
        (item,) = iter_inputs(io.BytesIO(line), block.place, Counter(), Reading())
        assert isinstance(item, Item), f"{block.place}: {item}"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "observer observe chats.jsonl --outt observations.jsonl"),
        ("bash", "observer data check missing.jsonl"),
        ("bash", "python eval/evaluate.py --modle outputs/nano"),
        ("bash", "python eval/evaluate.py --model outputs/nano --split missing.jsonl"),
        ("bash", "python train_sft.py --config configs/nano.yaml --set lora.rank=3"),
        ("bash", "make tarin"),
        ("bash", "pip install -e '.[dmeo]'"),
        ("bash", "pip install 'observer[demo]'"),
        ("bash", "sometool --yes"),
        ("console", "$ echo one two\none ... three"),
        ("console", "no command"),
        ("python", "from observer import Observers"),
        ("yaml", "lora: {rank: 3}"),
        ("json", '{"user_message": '),
        ("jsonl", '{"user_message": "I live in Rome", "assistant_message": "", "label": "MAYBE"}'),
        ("modelfile", "FORM ./model.gguf"),
        ("rust", "fn main() {}"),
    ],
)
def test_a_block_that_does_not_work_is_found(language: str, text: str, folder: Path) -> None:
    block = Block(PROJECT_ROOT / "docs" / "page.md", 1, language, f"{text}\n")
    with pytest.raises((AssertionError, ImportError, ValueError, ObserverError)):
        _work(block, Shell(folder, "http://127.0.0.1:1", "http://127.0.0.1:1/v1"), {})


@each_page
def test_every_link_of_the_page_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links_of(page):
        target, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors_of(path)):
            broken.append(link)
    assert not broken


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [PROJECT_ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        linked = {(page.parent / link.partition("#")[0]).resolve() for link in links_of(page)}
        waiting += [other for other in linked - reached if other.suffix == ".md" and other.exists()]
    lost = [str(page.relative_to(PROJECT_ROOT)) for page in pages() if page not in reached]
    assert not lost, "link them, from docs/README.md for one"


def test_the_quickstart_shows_how_a_training_ends() -> None:
    config = load_config(PROJECT_ROOT / "configs/nano.yaml")
    modelfiles = [config.paths.modelfile(variant) for variant in VARIANTS]
    assert next_steps(config, modelfiles) in (PROJECT_ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def test_the_page_on_memory_names_every_rule() -> None:
    page = (PROJECT_ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b[A-Z]+_?[A-Z]+\b", page))
    assert {*ONE_AT_A_TIME, *OPPOSITES, *EARLIER_STAGES} <= named
    assert set(map(str, OperationKind)) <= named
    rows = set(re.findall(r"^\| [A-Z]+ `(\w+)` \|", page, re.MULTILINE))
    assert rows == set(map(str, Reason)) - {"new"}
