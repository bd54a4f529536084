"""Is B better than A? Paired tests on the same held-out rows, and the rows on which they differ.

    python eval/compare.py A B [C …]

The first is the reference. Each is a run (outputs/NAME), a GGUF file, a Hugging Face folder (hf:FOLDER), ollama:NAME,
or answers saved before (….answers.jsonl). `+few4` behind a name shows the model four train rows of the task first.
Answers are kept: a second comparison is instant, and one that was cut goes on with the model it was at.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: import from the project, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from eval.answers.answering import Answers
from eval.answers.few_shot import draw_examples
from eval.answers.models_compared import Contestant, answer_once, answers_path, look_at, parse_contestant, slug
from eval.answers.origin import command_line, split_prefix
from eval.answers.rows import Row, rows_of_split, take
from observer.console.arguments import positive
from observer.console.run import run_cli
from observer.data.dataset import read_rows
from observer.errors import ObserverError
from observer.files import check_writable
from observer.paths import TRAIN_JSONL
from observer.prompts import NO_EXAMPLES
from observer.runs.manifest import environment

if TYPE_CHECKING:
    from eval.reports.comparison import Comparison

COMPARISONS = Path("outputs/comparisons")
_LONGEST_STEM = 150


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = _parser().parse_args(arguments)
    from eval.reports.comparison import compare_many
    from eval.reports.comparison_report import Origin, verdict_table, write_comparisons

    check_writable(args.out)
    contestants = _contestants(args.model)
    (reference, _), *others = found = _answers(contestants, args)
    comparisons = compare_many(reference, [answers for answers, _ in others])
    origin = Origin(
        command=command_line("eval/compare.py", arguments),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=environment(),
        answers={answers.model.path: str(path) for answers, path in found},
    )
    stem = split_prefix(reference.split, args.out) + _stem(contestants)
    paths = write_comparisons(comparisons, origin, args.out / stem)
    print(f"wrote {', '.join(map(str, paths))}", file=sys.stderr)
    print(verdict_table(comparisons))
    print(json.dumps(_last_line(comparisons, paths[0]), ensure_ascii=False))
    return 0


def _contestants(specs: Sequence[str]) -> list[Contestant]:
    if len(specs) < 2:
        raise ObserverError(f"{specs[0]}: nothing to compare it with; name two models or more")
    twice = sorted({spec for spec in specs if specs.count(spec) > 1})
    if twice:
        raise ObserverError(f"{', '.join(twice)}: named twice; a model does not differ from itself")
    return [parse_contestant(spec) for spec in specs]


def _answers(contestants: Sequence[Contestant], args: argparse.Namespace) -> list[tuple[Answers, Path]]:
    """The answers of all, in order, and where they are. Everything is looked at before the first model runs."""
    from eval.reports.comparison import check_rows

    weights, saved = look_at(contestants)
    split, rows = _rows(list(saved.values()), args)
    for answers in saved.values():
        check_rows(answers, rows, split)
    examples = {
        n: draw_examples(read_rows(args.train), rows, n, args.seed) if n else NO_EXAMPLES
        for n in sorted({contestant.n_examples for contestant in contestants})
    }
    found: list[tuple[Answers, Path]] = []
    for contestant in contestants:
        if contestant.is_saved:
            found.append((saved[contestant.spec], Path(contestant.source)))
            continue
        shown = examples[contestant.n_examples]
        path = answers_path(args.out / "answers", contestant, weights[contestant.spec], rows, shown)
        found.append((answer_once(contestant, path, rows, split, shown, args.threads), path))
    return found


def _rows(saved: Sequence[Answers], args: argparse.Namespace) -> tuple[str, list[Row]]:
    """The split and its rows: those asked for, else those that saved answers answer, else val."""
    if args.split is None and saved:
        if args.limit:
            raise ObserverError("--limit: saved answers decide the rows; leave it out, or name their split too")
        return saved[0].split, [*saved[0].grade_rows, *saved[0].extract_rows]
    split = args.split or "val"
    return split, take(rows_of_split(split), args.limit)


def _stem(contestants: Sequence[Contestant]) -> str:
    """Who is compared, as a name for the reports."""
    names = "-vs-".join(slug(contestant.spec) for contestant in contestants)
    if len(names) > _LONGEST_STEM:
        names = f"{names[:_LONGEST_STEM]}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    return names


def _last_line(comparisons: Sequence[Comparison], report: Path) -> dict[str, Any]:
    """What a script reads: each model's verdicts and differences by measure, and where the rest is."""
    models = {
        comparison.model.path: {
            test.measure: {"verdict": test.verdict, "difference": test.difference, "p": test.corrected_p}
            for test in comparison.tests
        }
        for comparison in comparisons
    }
    return {"reference": comparisons[0].reference.path, "models": models, "report": str(report)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", help="two or more; the others are compared with the first")
    parser.add_argument(
        "--split", metavar="val|train|challenge|everyday|FILE.jsonl",
        help="rows to answer, raw or split rows (those of saved answers, else val)",
    )  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="rows of each task, evenly spread (all)")
    parser.add_argument("--train", type=Path, default=TRAIN_JSONL, metavar="FILE.jsonl", help="rows of the examples "
        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="draws the examples of +fewN (0)")
    parser.add_argument(
        "--out", type=Path, default=COMPARISONS, metavar="DIR", help=f"reports and answers ({COMPARISONS})"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of a model in this process (all cores)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
