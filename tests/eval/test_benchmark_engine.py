"""The engine's benchmark end to end on a tiny model, its figures by hand, and the model that recites."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.engine.benchmark import main, model_size
from eval.benchmarks.engine.engines import as_json, as_label
from eval.benchmarks.engine.report import ModelSize, floors, sections, standings
from eval.benchmarks.reciting_base import distinct_tokens, recite
from observer.engine.engine import Engine
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.files import write_jsonl
from observer.paths import PROJECT_ROOT
from observer.prompts import Task
from tests.conftest import make_tiny_model
from tests.support.tiny_runs import split_rows

SERVER = PROJECT_ROOT / "tests" / "support" / "llama_server.py"


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It recites: llama-cpp-python never stops where random weights repeat a piece of a UTF-8 character."""
    folder = tmp_path_factory.mktemp("tiny")
    base = make_tiny_model(folder / "base", tie_word_embeddings=False)
    return write_gguf(recite(base, folder / "reciting", "IMPORTANT"), folder / "tiny.gguf", name="tiny")


def arguments(model: Path, folder: Path, *more: str) -> list[str]:
    write_jsonl(folder / "rows.jsonl", split_rows(4))
    common = f"--split {folder / 'rows.jsonl'} --threads 1 --n-seq 2 --max-new-tokens 32 --out {folder} --work {folder}"
    return ["--model", str(model), *common.split(), *more]


def test_the_command_times_all_and_goes_on_where_it_stopped(
    tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SERVER}" "$@"\n')
    binary.chmod(0o755)
    assert main(arguments(tiny_gguf, tmp_path, "--rounds", "1", "--llama-server", str(binary))) == 0
    (records,) = tmp_path.glob("*/rounds.jsonl")
    first = records.read_text()
    assert main(arguments(tiny_gguf, tmp_path, "--rounds", "2", "--llama-server", str(binary))) == 0
    assert records.read_text().startswith(first)
    names = ["ours", "ours-undrafted", "chat", "chat-cached", "llama-server"]
    rounds = [json.loads(line) for line in records.read_text().splitlines()]
    assert [(r["entrant"], r["round"]) for r in rounds] == [(name, number) for number in (1, 2) for name in names]
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(summary[Task.EXTRACT]) == names
    found = json.loads((tmp_path / "engine-tiny.json").read_text())["standings"]
    assert {s["agreement"] for s in found if s["task"] == Task.GRADE} == {1}
    assert all(r["answers"][Task.GRADE] == ["IMPORTANT"] * 2 for r in rounds)
    assert "## Where the time goes" in (tmp_path / "engine-tiny.md").read_text()


def test_a_contestant_that_fails_is_reported_and_the_others_go_on(tiny_gguf: Path, tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\necho no such flag >&2\nexit 3\n")
    binary.chmod(0o755)
    more = ["--rounds", "1", "--llama-server", str(binary), "--contestants", "llama-server"]
    assert main(arguments(tiny_gguf, tmp_path, *more)) == 1
    report = (tmp_path / "engine-tiny.md").read_text()
    assert "## Did not run\n\n- `llama-server`: llama-server: no such flag" in report
    assert "| ours " in report


def test_wrong_requests_are_one_clear_line(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ObserverError, match="unknown nobody; known: ours, ours-undrafted, chat"):
        main(arguments(tiny_gguf, tmp_path, "--contestants", "nobody"))
    with pytest.raises(ObserverError, match="name its binary with --llama-server"):
        main(arguments(tiny_gguf, tmp_path, "--contestants", "llama-server"))


def test_labels_and_json_are_compared_by_what_they_mean() -> None:
    assert as_label(" STORE\n") == "STORE"
    assert as_label("STORE it") is None
    assert as_json('{"a": [1, 2]}') == as_json('{"a":[1,2]}')
    assert as_json('{"a":') == '{"a":'


def round_of(name: str, number: int, seconds: float, labels: list[str]) -> dict[str, Any]:
    return {
        "kind": "round", "entrant": name, "round": number, "gflop_per_s": 100.0,
        "seconds": {"grade": seconds, "extract": 0.0}, "answers": {"grade": labels, "extract": []},
        "n_written": {"grade": 0, "extract": 0}, "work": {"grade": (1_000_000, 10), "extract": (0, 0)},
    }  # fmt: skip


def test_ratios_pair_the_rounds_and_the_floor_counts_body_and_head() -> None:
    """Twice 1,000 body weights for a million tokens and 500 head weights for ten: 2.00001 GFLOP, 0.02 s at 100/s."""
    records = [
        round_of("ours", 1, 1.0, ["STORE", "DISCARD"]), round_of("chat", 1, 4.0, ["STORE", "hm"]),
        round_of("ours", 2, 2.0, ["STORE", "DISCARD"]), round_of("chat", 2, 4.0, ["STORE", "hm"]),
    ]  # fmt: skip
    ours, chat = standings(records, {"grade": 2, "extract": 0})
    assert (ours.examples_per_s.min, ours.examples_per_s.max, ours.agreement) == (1.0, 2.0, 1.0)
    assert (chat.ratio.min, chat.ratio.median, chat.ratio.max) == (2.0, 3.0, 4.0)
    assert chat.agreement == 0.5
    (floor,) = floors(records, ModelSize(body=1000, head=500))
    assert floor.tflop == pytest.approx(2.00001e-3)
    assert floor.floor_s == pytest.approx(0.0200001)
    assert floor.share == pytest.approx(0.0200001 / 1.5)
    text = "".join(sections([ours, chat], [floor], {1: 7.0, 4: 40.0}, {}))
    assert "| chat " in text
    assert "| ms a token | 7.0 | 10.0 |" in text


def test_the_weights_of_a_file_are_counted(tiny_gguf: Path) -> None:
    """Hidden 256, ffn 256, 4 heads of 64 and 2 of keys: 256·256·2 + 256·128·2 + 3·256·256 a layer, two layers."""
    assert model_size(tiny_gguf) == ModelSize(body=2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 256), head=512 * 256)


def test_distinct_tokens_never_use_one_twice() -> None:
    vocabulary = {"ab": 0, "a": 1, "b": 2, "Ġc": 3, "Ġ": 4, "c": 5}
    assert distinct_tokens("ab cab", vocabulary) == [0, 3, 1, 2]
    with pytest.raises(ObserverError, match="without using one twice"):
        distinct_tokens("abababab", vocabulary)


def test_a_model_that_recites_gives_its_answer_and_ends(tiny_gguf: Path) -> None:
    with Engine(tiny_gguf, n_threads=1, max_new_tokens=32) as engine:
        for answer in engine.extract(["USER: I live in Oslo", "USER: hi"], constrained=False):
            assert (answer.text, answer.truncated) == ("IMPORTANT", False)
