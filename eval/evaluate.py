"""Score a GGUF on held-out rows: grading beside its baselines, extraction under the grammar.

    python eval/evaluate.py --model outputs/RUN/gguf/NAME-q4_k_m.gguf

Several models give one table. Reports (JSON, Markdown) go beside the run's other reports.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: import from the project, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from eval.report import STAND_IN_NOTE, GroupScores, ModelInfo, Report, summary_table, this_machine, write_report
from observer.dataset import read_rows, read_split
from observer.errors import ObserverError, raise_all, run_cli
from observer.files import check_writable
from observer.manifest import environment
from observer.paths import CHALLENGE_JSONL, TRAIN_JSONL, VAL_JSONL
from observer.progress import show_progress
from observer.prompts import Task

if TYPE_CHECKING:
    from eval.metrics import GradingScores
    from observer.answers import Completion, Grade
    from observer.engine import Engine
    from observer.schema import Extraction

Row = dict[str, Any]
SPLITS = {"val": (VAL_JSONL,), "train": (TRAIN_JSONL,), "challenge": CHALLENGE_JSONL}
UNCONSTRAINED_SAMPLE = 64

__all__ = ["Report", "evaluate", "main", "summary_table", "take", "write_report"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = _parser().parse_args(arguments)
    rows = take(rows_of_split(args.split), args.limit)
    train_rows = _train_rows(args.train)
    folders = [args.out or default_reports_folder(model) for model in args.model]
    check_before_running(args.model, folders)
    command = shlex.join(["python", "eval/evaluate.py", *(sys.argv[1:] if arguments is None else arguments)])
    reports = []
    for model, folder in zip(args.model, folders, strict=True):
        report = evaluate(model, rows, train_rows, split=args.split, command=command, n_threads=args.threads)
        print(f"wrote {' and '.join(map(str, write_report(report, folder)))}", file=sys.stderr)
        reports.append(report)
    if any(report.model.is_stand_in for report in reports):
        print(STAND_IN_NOTE, file=sys.stderr)
    print(summary_table(reports))
    return 0


def evaluate(
    model: Path,
    rows: Sequence[Row],
    train_rows: Sequence[Row],
    *,
    split: str = "val",
    command: str | None = None,
    n_threads: int | None = None,
) -> Report:
    """Run both tasks over `rows` (lines of a split file) and score them; `train_rows` teach the baselines.

    Raises ObserverError when the model cannot be loaded or a row does not fit its context.
    """
    from eval.metrics import is_json_object, score_extraction, score_grading
    from observer.engine import Engine

    grade_rows, extract_rows = (of_task(rows, task) for task in Task)
    sample = take(extract_rows, UNCONSTRAINED_SAMPLE)
    with Engine(model, n_threads=n_threads) as engine:
        grades, grade_s = _grade(engine, grade_rows)
        completions, extract_s = _extract(engine, extract_rows, constrained=True)
        unconstrained, _ = _extract(engine, sample, constrained=False)
        info, machine = _describe(engine), this_machine(engine.n_threads)
    answers = [completion.text for completion in completions]
    gold = [extraction_of(row) for row in extract_rows]
    rates = {Task.GRADE: (len(grades), grade_s), Task.EXTRACT: (len(answers), extract_s)}
    return Report(
        model=info,
        split=split,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command or shlex.join(["python", "eval/evaluate.py", "--model", str(model), "--split", split]),
        machine=machine,
        environment=environment(),
        grading=score_grading([answer_of(row) for row in grade_rows], [g.label for g in grades]) if grades else None,
        baselines=baselines(grade_rows, of_task(train_rows, Task.GRADE)),
        extraction=score_extraction(gold, answers) if answers else None,
        n_truncated=sum(completion.truncated for completion in completions),
        unconstrained_json_validity=_mean([is_json_object(c.text) for c in unconstrained]),
        n_unconstrained=len(unconstrained),
        examples_per_s={str(task): n / seconds for task, (n, seconds) in rates.items() if n},
        slices=_groups(_slice_names, grade_rows, grades, extract_rows, answers),
        unseen=_groups(_unseen, grade_rows, grades, extract_rows, answers),
    )


def baselines(rows: Sequence[Row], train_rows: Sequence[Row]) -> dict[str, GradingScores]:
    """Scores of the majority class and the TF-IDF probe on grading rows; none without rows to learn from."""
    from eval.baselines import majority_class, tfidf_probe
    from eval.metrics import score_grading

    if not rows or not train_rows:
        return {}
    gold, train_labels = ([answer_of(row) for row in part] for part in (rows, train_rows))
    texts, train_texts = (tuple(exchange_of(row) for row in part) for part in (rows, train_rows))
    return {
        "majority": score_grading(gold, majority_class(train_labels, len(gold))),
        "tfidf": score_grading(gold, tfidf_probe(train_texts, tuple(train_labels), texts)),
    }


def rows_of_split(split: str) -> list[Row]:
    """The rows of a named split, or of a file of raw or split rows."""
    return [row for path in SPLITS.get(split, (Path(split),)) for row in read_rows(path)]


def of_task(rows: Sequence[Row], task: Task) -> list[Row]:
    return [row for row in rows if row["task"] == task]


def exchange_of(row: Row) -> str:
    """The rendered turns: the user message of the prompt."""
    return row["prompt"][-1]["content"]


def answer_of(row: Row) -> str:
    return row["completion"][0]["content"]


def extraction_of(row: Row) -> Extraction:
    from observer.schema import Extraction

    return Extraction.model_validate_json(answer_of(row))


def take(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """At most `limit` rows of each task, evenly spread over the file."""
    if limit is None:
        return list(rows)
    chosen: list[Row] = []
    for task in Task:
        part = of_task(rows, task)
        n = min(limit, len(part))
        chosen += [part[i * len(part) // n] for i in range(n)]
    return chosen


def default_reports_folder(model: Path) -> Path:
    """`outputs/RUN/reports` for `outputs/RUN/gguf/NAME.gguf`, else `reports` beside the file."""
    folder = model.parent
    return (folder.parent if folder.name == "gguf" else folder) / "reports"


def check_before_running(models: Sequence[Path], folders: Sequence[Path]) -> None:
    """Raise ObserverError naming every model that is no GGUF, or a report folder that cannot be written."""
    from observer.llama import check_is_gguf

    faults = []
    for model in models:
        try:
            check_is_gguf(model)
        except ObserverError as error:
            faults.append(str(error))
    raise_all(faults)
    for folder in folders:
        check_writable(folder)


def _train_rows(path: Path) -> list[Row]:
    if path == TRAIN_JSONL and not path.exists():
        print(f"{path}: no such file; grading is reported without baselines", file=sys.stderr)
        return []
    return read_split(path)


def _grade(engine: Engine, rows: Sequence[Row]) -> tuple[list[Grade], float]:
    with show_progress("grading", len(rows)) as progress:
        start = time.perf_counter()
        grades = engine.grade([exchange_of(row) for row in rows], progress=progress)
        return grades, time.perf_counter() - start


def _extract(engine: Engine, rows: Sequence[Row], *, constrained: bool) -> tuple[list[Completion], float]:
    with show_progress("extracting" if constrained else "extracting, no grammar", len(rows)) as progress:
        start = time.perf_counter()
        completions = engine.extract([exchange_of(row) for row in rows], constrained, progress)
        return completions, time.perf_counter() - start


def _describe(engine: Engine) -> ModelInfo:
    from gguf import LlamaFileType

    path, name = engine.model.path, engine.model.metadata("general.name") or engine.model.path.stem
    number = engine.model.metadata("general.file_type")
    file_type = LlamaFileType(int(number)).name.lower() if number else "unknown"
    file_type = file_type.removeprefix("mostly_").removeprefix("all_")
    return ModelInfo(str(path), name, file_type, path.stat().st_size, "nano" in name.casefold())


def _groups(
    names_of: Callable[[Row], Sequence[str]],
    grade_rows: Sequence[Row],
    grades: Sequence[Grade],
    extract_rows: Sequence[Row],
    answers: Sequence[str],
) -> dict[str, GroupScores]:
    """Scores of the rows of each name; a row may have several names or none."""
    from eval.metrics import score_extraction, score_grading

    groups = {}
    for name in sorted({name for row in (*grade_rows, *extract_rows) for name in names_of(row)}):
        labels = [(answer_of(r), g.label) for r, g in zip(grade_rows, grades, strict=True) if name in names_of(r)]
        pairs = [(extraction_of(r), a) for r, a in zip(extract_rows, answers, strict=True) if name in names_of(r)]
        grading = score_grading([g for g, _ in labels], [p for _, p in labels]) if labels else None
        extraction = score_extraction([g for g, _ in pairs], [a for _, a in pairs]) if pairs else None
        groups[name] = GroupScores(
            n_grade=len(labels),
            accuracy=grading.accuracy if grading else None,
            macro_f1=grading.macro_f1 if grading else None,
            n_extract=len(pairs),
            entity_f1=extraction.entity_f1 if extraction else None,
            triple_f1_temporal=extraction.triple_f1_temporal if extraction else None,
        )
    return groups


def _slice_names(row: Row) -> Sequence[str]:
    return row.get("slices") or ()


def _unseen(row: Row) -> Sequence[str]:
    return [row["unseen"]] if row.get("unseen") else []


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", required=True, metavar="FILE.gguf", help="models to score")
    parser.add_argument(
        "--split", default="val", metavar="val|train|challenge|FILE.jsonl",
        help="rows to score on, raw or split rows (val)",
    )  # fmt: skip
    parser.add_argument("--train", type=Path, default=TRAIN_JSONL, metavar="FILE.jsonl", help="rows of the baselines")
    parser.add_argument("--limit", type=_positive, metavar="N", help="rows of each task, evenly spread (all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the reports (the run's reports/)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads of llama.cpp (all cores)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a positive number is expected, found {text}")
    return value


if __name__ == "__main__":
    sys.exit(run_cli(main))
