"""Score a model on held-out rows: grading beside its baselines, extraction under the grammar.

    python eval/evaluate.py --model outputs/RUN/gguf/NAME-q4_k_m.gguf

A model is a GGUF file, a run (outputs/NAME), hf:FOLDER, ollama:NAME, or answers saved before (….answers.jsonl), which
are scored again without it. Several give one table. Reports (JSON, Markdown) and answers go beside the run's others.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run as a script: import from the project, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from eval.answers.answering import SAVED_SUFFIX, Answers, answer_rows, describe_model, load_answers
from eval.answers.origin import STAND_IN_NOTE, command_line
from eval.answers.rows import ATTACKS, Row, rows_of_split, take
from eval.reports.evaluation_report import Report, report_path, summary_table, write_report
from observer.config import Config
from observer.console.arguments import positive
from observer.console.run import run_cli
from observer.data.dataset import read_part, read_split
from observer.errors import ObserverError, raise_all
from observer.files import check_writable, write_text
from observer.paths import TRAIN_JSONL, RunPaths
from observer.runs.finished_run import read_run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = _parser().parse_args(arguments)
    bring_rows = all(map(is_saved, args.model))
    if bring_rows and (args.split or args.limit):
        raise ObserverError("saved answers are scored on the rows that they answer; leave out --split and --limit")
    split = args.split or "val"
    rows = [] if bring_rows else take(rows_of_split(split), args.limit)
    lessons = [lessons_of(model, args.train) for model in args.model]
    folders = [args.out or default_reports_folder(model) for model in args.model]
    check_before_running(args.model, folders)
    command = command_line("eval/evaluate.py", arguments)
    reports = []
    for model, folder, lesson in zip(args.model, folders, lessons, strict=True):
        report = evaluate(model, rows, lesson.rows, split=split, folder=folder, command=command, n_threads=args.threads)
        report = replace(report, baseline_files=lesson.names)
        print(f"wrote {' and '.join(map(str, write_report(report, folder)))}", file=sys.stderr)
        reports.append(report)
    if any(report.model.is_stand_in for report in reports):
        print(STAND_IN_NOTE, file=sys.stderr)
    print(summary_table(reports))
    for attacks in (report.attacks for report in reports if report.attacks):
        from eval.reports.attack_report import rates_table

        print(f"\n{rates_table(attacks)}")
    return 0


def evaluate(
    model: str | Path,
    rows: Sequence[Row],
    train_rows: Sequence[Row],
    *,
    split: str = "val",
    folder: Path | None = None,
    command: str | None = None,
    n_threads: int | None = None,
) -> Report:
    """Ask both tasks of `rows` (lines of a split file) and score the answers; `train_rows` teach the baselines.

    `model` is what `open_backend` takes, or saved answers, which bring their own rows. Answers are saved in `folder`
    after each task. Raises ObserverError when the model cannot be opened or a row does not fit its context.
    """
    from eval.reports.attack_report import read_goals, score_attacks
    from eval.reports.scoring import score

    answers = load_answers(Path(model)) if is_saved(model) else _ask(model, rows, split, folder, n_threads)
    again = ["python", "eval/evaluate.py", "--model", str(model), "--split", split]
    report = score(answers, train_rows, command or shlex.join(again))
    return replace(report, attacks=score_attacks(answers, read_goals())) if answers.split == ATTACKS else report


def evaluate_run(config: Config, models: Sequence[Path], summary: Path) -> None:
    """Write a report for each model and their table to `summary`."""
    rows = take(read_split(config.data.val), config.evaluation.limit)
    lessons = read_lessons(config.data.train, config.data.more)
    reports = []
    for model in models:
        report = evaluate(model, rows, lessons.rows, split=str(config.data.val), folder=summary.parent)
        reports.append(replace(report, baseline_files=lessons.names))
        write_report(reports[-1], summary.parent)
    notes = [STAND_IN_NOTE] if any(report.model.is_stand_in for report in reports) else []
    write_text(summary, "\n\n".join([summary_table(reports), *notes]) + "\n")


def is_saved(model: str | Path) -> bool:
    """Whether it names answers of an earlier evaluation."""
    return str(model).endswith(f".{SAVED_SUFFIX}")


def _ask(model: str | Path, rows: Sequence[Row], split: str, folder: Path | None, n_threads: int | None) -> Answers:
    from observer.backends.opening import open_backend

    with open_backend(model, n_threads=n_threads) as backend:
        info = describe_model(backend, str(model))
        path = report_path(info, split, folder, SAVED_SUFFIX) if folder else None
        return answer_rows(backend, rows, split=split, model=info, keep_in=path)


def default_reports_folder(model: str) -> Path:
    """`outputs/RUN/reports` for the run or anything in it, else `reports` beside the file."""
    if model.startswith("ollama:"):
        return Path("outputs/reports")
    path = Path(model.removeprefix("hf:"))
    if is_saved(model):
        return path.parent
    if path.is_dir():
        return (path.parent if (path / "config.json").exists() else path) / "reports"
    return (path.parent.parent if path.parent.name == "gguf" else path.parent) / "reports"


def check_before_running(models: Sequence[str], folders: Sequence[Path]) -> None:
    """Raise ObserverError naming every model that cannot be opened, or a report folder that cannot be written."""
    faults = []
    for model in models:
        try:
            _check(model)
        except ObserverError as error:
            faults.append(str(error))
    raise_all(faults)
    for folder in folders:
        check_writable(folder)


def _check(model: str) -> None:
    """Whether a server knows its model shows when it is asked."""
    from observer.backends.opening import best_gguf
    from observer.engine.llama_model import check_is_gguf

    if is_saved(model):
        load_answers(Path(model))
    elif not model.startswith(("ollama:", "hf:")) and not (Path(model) / "config.json").is_file():
        check_is_gguf(best_gguf(Path(model)))


@dataclass(frozen=True)
class Lessons:
    """What the baselines learn from: rows, and the files that hold them."""

    rows: Sequence[Row] = ()
    names: tuple[str, ...] = ()


def read_lessons(train: Path, more: Sequence[Path] = ()) -> Lessons:
    """Rows of a split file, and the train part of files of raw rows."""
    rows = [*read_split(train), *(row for path in more for row in read_part(path, "train"))]
    return Lessons(rows, tuple(map(str, (train, *more))))


def lessons_of(model: str, given: Path | None) -> Lessons:
    """The rows that a model was trained on, as far as its run tells; else the shipped ones. `given` is `--train`."""
    if given is not None:
        return read_lessons(given)
    root = default_reports_folder(model).parent
    is_of_run = not model.startswith("ollama:") and RunPaths(root, "").config.is_file()
    files = read_run(root).train_files if is_of_run else (TRAIN_JSONL,)
    if missing := [path for path in files if not path.exists()]:
        print(f"{missing[0]}: no such file; grading is reported without baselines", file=sys.stderr)
        return Lessons()
    return read_lessons(files[0], files[1:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="MODEL", help="models to score")
    parser.add_argument(
        "--split", metavar="val|train|challenge|everyday|attacks|FILE.jsonl",
        help="rows to score on, raw or split rows (val)",
    )  # fmt: skip
    parser.add_argument(
        "--train", type=Path, metavar="FILE.jsonl",
        help="rows of the baselines (default: those that the run was trained on, else the shipped ones)",
    )  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="rows of each task, evenly spread (all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the reports (the run's reports/)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of llama.cpp (all cores)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
