"""Answers are asked once and kept: what is saved comes back the same, and a cut run loses only its last task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.answers.answering import Answers, answer_rows, load_answers, save_answers
from eval.answers.rows import families_of
from eval.reports.scoring import score
from observer.engine.engine import Engine
from observer.errors import ObserverError
from observer.observation import Completion
from observer.prompts import training_row
from observer.schema import parse_row

RAW_ROWS = [
    {"user_message": "thanks ☕", "assistant_message": "", "label": "DISCARD", "family": "thanks", "slices": ["noise"]},
    {"user_message": "i love tea", "assistant_message": "Nice.", "label": "STORE", "id": "tea", "unseen": "name"},
    {"user_message": "what is 2 + 2?", "assistant_message": "4", "entities": [], "relationships": [], "family": "a+b"},
    {"user_message": "and 3 + 3?", "assistant_message": "6", "entities": [], "relationships": []},
]
ROWS = [training_row(row) for row, _ in map(parse_row, RAW_ROWS) if row is not None]


class Interrupted(Engine):
    """A real engine in whose extraction the user presses Ctrl-C."""

    def extract(self, *_: object, **__: object) -> list[Completion]:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def answers(tiny_gguf: Path) -> Answers:
    with Engine(tiny_gguf, n_threads=1, max_new_tokens=8) as engine:
        return answer_rows(engine, ROWS, split="rows.jsonl")


def test_saved_answers_come_back_with_their_rows(answers: Answers, tmp_path: Path) -> None:
    save_answers(answers, tmp_path / "x.answers.jsonl")
    assert load_answers(tmp_path / "x.answers.jsonl") == answers
    assert answers.grade_rows + answers.extract_rows == ROWS
    assert list(answers.unconstrained) == [0, 1]
    assert answers.seconds.keys() == {"grade", "extract"}
    assert answers.unfinished == ()
    lines = [json.loads(line) for line in (tmp_path / "x.answers.jsonl").read_text().splitlines()]
    assert lines[0]["model"]["file_type"] == "f16"
    assert lines[1]["exchange"] == "USER: thanks ☕"
    assert lines[1]["gold"] == "DISCARD"
    assert set(lines[1]["probabilities"]) == {"DISCARD", "STORE", "IMPORTANT"}
    assert lines[3]["family"] == "a+b"


def test_grades_survive_a_run_cut_in_extraction(tiny_gguf: Path, tmp_path: Path, capsys) -> None:
    kept = tmp_path / "cut.answers.jsonl"
    with Interrupted(tiny_gguf, n_threads=1) as engine, pytest.raises(KeyboardInterrupt):
        answer_rows(engine, ROWS, keep_in=kept)
    assert f"grade: answers kept; eval/evaluate.py --model {kept}" in capsys.readouterr().err
    saved = load_answers(kept)
    assert (len(saved.grades), saved.completions, saved.unfinished) == (2, [], ("extract",))
    report = score(saved)
    assert report.grading is not None
    assert (report.grading.n, report.extraction, report.unfinished) == (2, None, ("extract",))


def test_a_row_too_long_for_the_model_is_named_by_its_id(tiny_gguf: Path) -> None:
    long = parse_row({"user_message": "tea " * 3000, "assistant_message": "", "label": "STORE", "id": "too-much"})[0]
    assert long is not None
    with Engine(tiny_gguf, n_threads=1) as engine, pytest.raises(ObserverError, match="grade row too-much: "):
        answer_rows(engine, [*ROWS, training_row(long)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no saved answers"),
        ('{"user_message": "hi"}\n', "no saved answers"),
        ('{"format": 999}\n', "no saved answers of this version"),
    ],
)
def test_another_file_is_no_saved_answers(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.answers.jsonl").write_text(text)
    with pytest.raises(ObserverError, match=message):
        load_answers(tmp_path / "x.answers.jsonl")


def test_every_faulty_line_is_named(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "x.answers.jsonl"
    save_answers(answers, path)
    lines = path.read_text().splitlines()
    grade, extraction = json.loads(lines[1]), json.loads(lines[3])
    lines[1], lines[3] = json.dumps(grade | {"label": "MAYBE"}), json.dumps({**extraction, "task": "sing"})
    path.write_text("\n".join(lines))
    with pytest.raises(ObserverError, match=r"(?s)jsonl:2: .*MAYBE.*jsonl:4: .*sing"):
        load_answers(path)


def test_rows_without_a_family_stand_alone_and_joined_ones_are_another_family() -> None:
    assert families_of(ROWS) == ["thanks", "row tea", "a+b", "row 3"]
