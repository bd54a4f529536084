"""The comparison command on real models: a planted regression is found, a copy of a file is not; a fault is a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval import compare
from eval.answers.few_shot import draw_examples
from eval.answers.models_compared import answers_path, parse_contestant, slug
from eval.answers.rows import answer_of, of_task, rows_of_split, take
from eval.quantizations.rounds import record_key
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.files import write_jsonl
from observer.paths import NANO_BASE, PROJECT_ROOT
from observer.prompts import Task, exchange_of
from observer.schema import Label
from tests.support.noise import with_noise
from tests.support.tiny_runs import split_rows

N_GRADE, N_EXTRACT = 8, 30


def command(out: Path, split: Path, *models: object, more: tuple[str, ...] = ()) -> list[str]:
    return [*map(str, models), "--split", str(split), "--out", str(out), "--threads", "1", *more]


def last_line(text: str) -> dict[str, Any]:
    return json.loads(text.splitlines()[-1])


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_jsonl(path, split_rows(4))
    return path


@pytest.mark.slow
def test_a_planted_regression_is_found_and_a_copy_of_the_same_file_is_not(tmp_path: Path, capsys) -> None:
    split, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = [row for row in rows_of_split("val") if row["origin"] == "generated"]  # the base knows these best
    write_jsonl(split, [*take(of_task(rows, Task.GRADE), N_GRADE), *take(of_task(rows, Task.EXTRACT), N_EXTRACT)])
    base = write_gguf(PROJECT_ROOT / NANO_BASE, tmp_path / "base.gguf", name="base")
    noised = write_gguf(with_noise(tmp_path / "noised", ".layers.2.", 1.0), tmp_path / "noised.gguf", name="n")
    copy = shutil.copy(base, tmp_path / "copy.gguf")

    assert compare.main(command(out, split, base, copy, noised)) == 0
    printed = capsys.readouterr()
    models = last_line(printed.out)["models"]
    for measure, test in models[str(copy)].items():
        assert test == {"verdict": "no evidence", "difference": 0, "p": 1}, measure
    assert models[str(noised)]["entity_f1"]["verdict"] == "worse"
    assert models[str(noised)]["triple_f1_temporal"]["verdict"] == "worse"

    report = json.loads(Path(last_line(printed.out)["report"]).read_text())
    to_copy, to_noised = report["comparisons"]
    assert (to_copy["n_grade"], to_copy["n_extract"], to_copy["differences"]) == (N_GRADE, N_EXTRACT, 0)
    lines = [json.loads(line) for line in next(out.glob("*.differences.jsonl")).read_text().splitlines()]
    assert len(lines) == to_noised["differences"] > 0
    assert {line["compared_model"] for line in lines} == {str(noised)}
    markdown = next(out.glob("*.md")).read_text()
    assert "largest losses" in markdown
    assert "no evidence" in markdown


@pytest.fixture(scope="module")
def compared(tiny_gguf: Path, split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of a model with `other.gguf`, a copy of it: its reports, and both their answers."""
    out = tmp_path_factory.mktemp("compared")
    assert compare.main(command(out, split, tiny_gguf, shutil.copy(tiny_gguf, out / "other.gguf"))) == 0
    return out


def test_a_second_comparison_asks_no_model_again(tiny_gguf: Path, split: Path, compared: Path, capsys) -> None:
    def found() -> tuple[dict[Path, int], Any]:
        kept = {path: path.stat().st_mtime_ns for path in (compared / "answers").iterdir()}
        return kept, json.loads(next(compared.glob("*-other.json")).read_text())["comparisons"]

    before = found()
    assert len(before[0]) == 2
    assert compare.main(command(compared, split, tiny_gguf, compared / "other.gguf")) == 0
    assert capsys.readouterr().err.count("answered before") == 2
    assert found() == before


def test_equal_files_of_one_name_share_answers_and_keep_their_own_names(
    tiny_gguf: Path, split: Path, tmp_path: Path, capsys
) -> None:
    copies = [tmp_path / folder / "same" / "m.gguf" for folder in "ab"]
    for copy in copies:
        copy.parent.mkdir(parents=True)
        shutil.copy(tiny_gguf, copy)
    assert compare.main(command(tmp_path, split, *copies)) == 0
    printed = capsys.readouterr()
    assert f"warning: {copies[0]} and {copies[1]} are the same weights under two names" in printed.err
    line = last_line(printed.out)
    assert (line["reference"], list(line["models"])) == (str(copies[0]), [str(copies[1])])


def test_other_rows_other_weights_or_other_examples_are_asked_anew(
    tiny_gguf: Path, split: Path, tmp_path: Path
) -> None:
    train = tmp_path / "train.jsonl"
    write_jsonl(train, [row | {"family": f"train-{n}"} for n, row in enumerate(split_rows(12)[4:])])
    more = ("--train", str(train))
    compare.main(command(tmp_path, split, tiny_gguf, f"{tiny_gguf}+few1", f"{tiny_gguf}+few2", more=more))
    assert len(list((tmp_path / "answers").iterdir())) == 3
    compare.main(command(tmp_path, split, tiny_gguf, f"{tiny_gguf}+few1", more=(*more, "--seed", "5")))
    assert len(list((tmp_path / "answers").iterdir())) == 4
    compare.main(command(tmp_path, split, tiny_gguf, f"{tiny_gguf}+few1", more=(*more, "--limit", "1")))
    assert len(list((tmp_path / "answers").iterdir())) == 6


def test_answers_of_older_code_are_asked_for_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("observer", "eval"):
        shutil.copytree(PROJECT_ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("eval.answers.origin.PROJECT_ROOT", tmp_path)

    def keys() -> set[str]:
        kept = answers_path(tmp_path, parse_contestant("m.gguf"), "weights", [], {})
        return {kept.name, *(record_key(kind) for kind in ("answers", "quality", "speed"))}

    before = keys()
    for module in ("engine/copying", "engine/llama_context", "prompts"):
        (tmp_path / "observer" / f"{module}.py").open("a").write("# changed\n")
        after = keys()
        assert not before & after, module
        before = after


def test_a_comparison_that_was_cut_goes_on_with_the_model_it_was_at(
    tiny_gguf: Path, split: Path, tmp_path: Path, capsys
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:100_000])
    arguments = command(tmp_path, split, tiny_gguf, broken)
    assert run_cli(lambda: compare.main(arguments)) == 1
    assert str(broken) in capsys.readouterr().err
    assert [path.name.startswith(slug(str(tiny_gguf))) for path in (tmp_path / "answers").iterdir()] == [True]
    shutil.copy(tiny_gguf, broken)
    assert compare.main(arguments) == 0
    assert capsys.readouterr().err.count("answered before") == 1


def test_saved_answers_stand_for_their_model_and_decide_the_rows(
    tiny_gguf: Path, split: Path, compared: Path, capsys
) -> None:
    saved = next((compared / "answers").glob("*other-*"))
    assert compare.main([str(saved), str(tiny_gguf), "--out", str(compared), "--threads", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("answered before") == 1
    assert last_line(printed.out)["models"][str(tiny_gguf)]["accuracy"]["p"] == 1
    with pytest.raises(ObserverError, match=r"answers 4 rows of .*; 2 of them are among the 2 rows of"):
        compare.main(command(compared, split, saved, tiny_gguf, more=("--limit", "1")))
    with pytest.raises(ObserverError, match="saved answers decide the rows"):
        compare.main([str(saved), str(tiny_gguf), "--limit", "1", "--out", str(compared)])


def test_a_folder_of_weights_is_compared_with_the_gguf_made_of_it(
    tiny_gguf: Path, tiny_model: Path, split: Path, tmp_path: Path, capsys
) -> None:
    folder = f"hf:{tiny_model}"
    assert compare.main(command(tmp_path, split, tiny_gguf, folder, more=("--limit", "1"))) == 0
    assert last_line(capsys.readouterr().out)["models"][folder]["accuracy"]["difference"] == 0


def test_everything_wrong_with_the_models_is_told_at_once_before_any_runs(
    tiny_gguf: Path, split: Path, compared: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    no_gguf, cut = tmp_path / "text.gguf", tmp_path / "cut.answers.jsonl"
    no_gguf.write_text("not a model")
    head, *lines = next((compared / "answers").glob("*tiny-*")).read_text().splitlines()
    cut.write_text("\n".join([json.dumps(json.loads(head) | {"unfinished": ["extract"]}), *lines]))
    faulty = [tmp_path / "missing.gguf", no_gguf, tmp_path / "no-run", f"hf:{tmp_path}", "ollama:nobody", cut]
    assert run_cli(lambda: compare.main(command(tmp_path, split, tiny_gguf, *faulty))) == 1
    error = capsys.readouterr().err.removeprefix("error: ").splitlines()
    assert len(error) == len(faulty)
    for fault, told in zip(faulty, error, strict=True):
        name = "127.0.0.1:9" if fault == "ollama:nobody" else str(fault).removeprefix("hf:")
        assert name in told
    assert not (tmp_path / "answers").exists()


def test_what_cannot_be_compared_is_one_line(tiny_gguf: Path, split: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    cases = {
        "no rows": [tiny_gguf, f"{tiny_gguf}+few1", "--split", empty],
        "no such file": [tiny_gguf, f"{tiny_gguf}+few1", "--split", tmp_path / "missing.jsonl"],
        "nothing to compare it with": [tiny_gguf],
        "named twice": [tiny_gguf, tiny_gguf],
        r"saved answers are given already": [tiny_gguf, "x.answers.jsonl+few1"],
        "9 wanted for task grade, 0 train rows": [tiny_gguf, f"{tiny_gguf}+few9", "--split", split, "--train", split],
    }
    for message, arguments in cases.items():
        with pytest.raises(ObserverError, match=message) as error:
            compare.main([*map(str, arguments), "--out", str(tmp_path)])
        assert "\n" not in str(error.value)


def test_examples_are_drawn_by_the_seed_and_share_no_family_with_the_rows() -> None:
    train, rows = rows_of_split("train"), rows_of_split("val")
    examples = draw_examples(train, rows, 6, seed=1)
    assert examples == draw_examples(train, rows, 6, seed=1) != draw_examples(train, rows, 6, seed=2)
    labels = [example.answer for example in examples[Task.GRADE]]
    assert {label: labels.count(label) for label in Label} == dict.fromkeys(Label, 2)
    gold = {exchange_of(row): answer_of(row) for row in train}
    assert all(gold[example.exchange] == example.answer for part in examples.values() for example in part)

    some = [row for row in train if row["family"] == train[0]["family"]]
    n_left = {task: len([row for row in of_task(train, task) if row["family"] != train[0]["family"]]) for task in Task}
    asked = of_task(some, Task(train[0]["task"]))
    task = Task(train[0]["task"])
    shown = draw_examples(train, asked, n_left[task], seed=0)
    assert set(shown) == {task}
    assert not {example.exchange for example in shown[task]} & {exchange_of(row) for row in some}


@pytest.mark.parametrize(
    ("spec", "source", "n_examples"),
    [
        ("outputs/nano", "outputs/nano", 0),
        ("ollama:qwen3:1.7b+few4", "ollama:qwen3:1.7b", 4),
        ("x+few2.gguf", "x+few2.gguf", 0),
        ("x+few2.gguf+few12", "x+few2.gguf", 12),
    ],
)
def test_a_spec_may_end_in_the_number_of_examples(spec: str, source: str, n_examples: int) -> None:
    contestant = parse_contestant(spec)
    assert (contestant.source, contestant.n_examples) == (source, n_examples)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("outputs/nano/gguf/nano-f16.gguf", "nano-f16"),
        ("outputs/nano", "nano"),
        ("outputs/nano/gguf/nano-f16.gguf+few2", "nano-f16+few2"),
        ("ollama:me/qwen3:1.7b+few4", "ollama-me-qwen3-1.7b+few4"),
        ("hf:models/Qwen3 0.6B/", "models-Qwen3-0.6B"),
    ],
)
def test_a_spec_names_its_files(spec: str, name: str) -> None:
    assert slug(spec) == name
