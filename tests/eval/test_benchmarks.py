"""What the speed benchmarks share, and the words and figures of those that have no file of their own here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.answers.origin import facts_of
from eval.benchmarks.harness import Record, Records, last_words, take_turns, write_benchmark
from eval.benchmarks.observing import (
    EarlierEngine,
    Part,
    choose_turns,
    in_words,
    is_same,
    lengthen,
    read_earlier,
    to_table,
)
from eval.benchmarks.reciting_base import note_on
from eval.metrics.spread import Spread, ratios
from observer.client import Observer
from observer.engine.engine import Engine
from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT
from observer.runs.manifest import git_commit
from observer.turns.before_model import prepare


def test_rounds_take_turns_and_go_on_where_they_were_cut_past_what_fails(tmp_path: Path) -> None:
    taken: list[tuple[str, int]] = []

    def take(name: str, number: int) -> Record:
        taken.append((name, number))
        if name == "trl" and len(taken) < 4:
            raise ObserverError("no memory")
        return {"seconds": 1.0}

    path = tmp_path / "records.jsonl"
    assert [record["kind"] for record in take_turns(["trl", "ours"], 1, Records(path), take)] == ["failed", "round"]
    found = take_turns(["trl", "ours"], 2, Records(path), take)  # the failure is forgotten, and comes again
    assert taken == [("trl", 1), ("ours", 1), ("trl", 1), ("ours", 2)]
    assert [record for record in found if record["kind"] == "failed"] == [
        {"kind": "failed", "entrant": "trl", "error": "no memory"}
    ]
    take_turns(["trl", "ours"], 2, Records(path), take)
    assert taken[4:] == [("trl", 1), ("trl", 2)]
    path.write_bytes(path.read_bytes()[:-5])  # as a kill leaves it
    take_turns(["trl", "ours"], 2, Records(path), take)
    assert taken[6:] == [("trl", 2)]


def test_ratios_are_of_rounds_that_both_took() -> None:
    assert ratios({1: 2.0, 2: 8.0, 3: 5.0}, {1: 1.0, 2: 2.0}) == Spread(2.0, 3.0, 4.0)
    assert ratios({1: 2.0}, {}) is None


def test_a_report_is_a_page_a_file_of_figures_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of("python -m a.benchmark --rows 3", n_threads=1)
    write_benchmark(tmp_path / "random-0.6b", "A title", facts, ["## Part"], {"figures": [1]}, {"ratio": 2})
    page = (tmp_path / "random-0.6b.md").read_text(encoding="utf-8")
    assert page.startswith("# A title\n\n- machine: ") and page.endswith("\n\n## Part\n")
    assert " 1 threads" in page and "- command: `python -m a.benchmark --rows 3`" in page
    assert json.loads((tmp_path / "random-0.6b.json").read_text(encoding="utf-8")) == facts | {"figures": [1]}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratio"] == 2


def test_the_last_words_are_the_last_line_with_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("loading\nerror: no memory\n \n")
    assert last_words(log, "nothing") == f"no memory [{log}]"
    log.write_text("\n")
    assert last_words(log, "nothing") == f"nothing [{log}]"


def test_the_ratio_is_that_of_all_seconds_with_the_range_of_the_parts() -> None:
    parts = [Part(10, 6.0, 2.0, 10), Part(30, 14.0, 8.0, 29)]
    assert in_words(parts, "loop") == (
        "`observe_many`: **2.00 times** as fast (1.75 to 3.00 in the parts): 4.0 turns/s where `loop` does 2.0. "
        "39 of 40 observations are equal but for probabilities."
    )
    cells = [cell.strip() for cell in to_table(parts, "loop").splitlines()[2].split("|")[1:-1]]
    assert cells == ["1", "10", "6.0", "2.0", "3.00", "1.7", "5.0", "10"]


def test_turns_are_lengthened_by_others(nano_gguf: Path) -> None:
    short = choose_turns(12)
    with Engine(nano_gguf, n_threads=1) as engine:
        longer = lengthen(short, 300, engine)
        assert longer and all(150 < engine.n_tokens(prepare(turn).prompt) <= 300 for turn in longer)
    assert {turn.user_message for turn in longer} <= {turn.user_message for turn in short}


@pytest.mark.skipif(git_commit() is None, reason="the project is no git checkout here")
def test_the_engine_of_a_checkout_observes_the_same(nano_gguf: Path, tmp_path: Path) -> None:
    turns = choose_turns(12)
    with EarlierEngine(PROJECT_ROOT, nano_gguf, 1) as earlier, Observer(nano_gguf, n_threads=1) as observer:
        assert earlier.commit
        pairs = zip(read_earlier(earlier, observer.name, turns), observer.observe_many(turns), strict=True)
        assert sum(is_same(one, other) for one, other in pairs) >= len(turns) - 2, "sums differ in their last bits"
    with pytest.raises(ObserverError, match=r"--beside .*: no checkout; `git worktree add"):
        EarlierEngine(tmp_path, nano_gguf, 1)
    with EarlierEngine(PROJECT_ROOT, tmp_path, 1) as broken, pytest.raises(ObserverError, match=r"engine .* ended"):
        broken.ask(["USER: hello"])


def test_a_report_says_what_kind_of_model_it_was() -> None:
    assert "random weights with a head that recites" in (note_on("reciting-0.6b-f16") or "")
    assert "stand-in" in (note_on("nano-q8_0") or "") and note_on("mine") is None
