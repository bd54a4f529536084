"""Which quantization to ship: make every type of a run, measure each against f16, and recommend one.

    python eval/benchmark_quantizations.py outputs/RUN
    python eval/benchmark_quantizations.py outputs/RUN --types q8_0,q4_k_m,q2_k --limit 40
    python eval/benchmark_quantizations.py --model F16.gguf OTHER.gguf … --split MY-ROWS.jsonl

Answers are scored with intervals and compared with the reference's row by row, next-token distributions by their KL
divergence, speed in turns, one file at work at a time. Writes quantizations-NAME.html, .md, .png and .json. Cut, it
goes on with the same command: what is on record is not measured again. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script: import from the project, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from eval.answers.origin import command_line, facts_of, split_prefix
from eval.answers.rows import families_of, of_task, rows_of_split, take
from eval.evaluate import default_reports_folder
from eval.quantizations.choice import MARGIN
from observer.console.arguments import natural, positive, share
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.files import check_writable
from observer.paths import VAL_JSONL
from observer.prompts import Task
from observer.runs.finished_run import Run, read_run

if TYPE_CHECKING:
    from eval.quantizations.files import Candidate
    from eval.quantizations.rounds import Bench

DEFAULT_TYPES = "f16 q8_0 q6_k q5_k_m q4_k_m iq4_xs q3_k_m iq3_xxs q2_k iq2_xs".split()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    args = parse_arguments(arguments)
    from eval.quantizations.page import write_reports
    from eval.quantizations.report import assemble
    from eval.quantizations.rounds import Bench, measure
    from eval.quantizations.view import overview
    from eval.reports.scoring import score

    run = read_run(args.run) if args.run else None
    split = args.split or (str(run.split.val) if run else "val")
    rows = take(rows_of_split(split), args.limit)
    for folder in (args.out, args.work):
        check_writable(folder)
    bench = Bench(
        candidates=find_candidates(args, run),
        rows=rows,
        split="val" if split == str(VAL_JSONL) else split,
        folder=args.work / "records",
        n_threads=args.threads,
        n_quality_rows=args.quality_rows,
        n_speed_rounds=args.speed_rounds,
        n_speed_rows=args.speed_rows,
    )
    name = run.config.run.name if run else bench.reference.name
    found = measure(bench)
    reports, facts = [score(one.answers) for one in found.files], bench_facts(args, bench)
    benchmark = assemble(found, reports, title=f"Quantizations of {name}", facts=facts, margin=args.margin)
    paths = write_reports(benchmark, args.out / f"{split_prefix(bench.split, args.out)}quantizations-{name}")
    print(overview(benchmark).markdown())
    print(benchmark.recommendation.sentence)
    verdicts = {file.name: str(file.verdict) for file in benchmark.files}
    summary = {"recommended": benchmark.recommendation.name, "verdicts": verdicts, "failed": benchmark.failures}
    print(json.dumps({"report": str(paths[0])} | summary))
    return 0


def find_candidates(args: argparse.Namespace, run: Run | None) -> list[Candidate]:
    """The reference, the run's files, then those that were given. Raises ObserverError unless they are several."""
    from eval.quantizations.files import build, given_files, wanted_files

    made: list[Candidate] = []
    if run:
        made = build(run, wanted_files(args.types, args.imatrix, run.config.export.tensor_types), args.work)
    candidates = [*made, *given_files(args.model, [candidate.name for candidate in made])]
    if len(candidates) < 2:
        raise ObserverError("one file is nothing to compare; name a run, or the reference and others with --model")
    return candidates


def bench_facts(args: argparse.Namespace, bench: Bench) -> dict[str, str]:
    """Where, when and on what it was measured."""
    parts = {task: of_task(bench.rows, task) for task in Task}
    counts = [f"{len(part):,} rows of task {task}, {len(set(families_of(part))):,} families"
              for task, part in parts.items() if part]  # fmt: skip
    return {
        "reference": f"{bench.reference.name}, {bench.reference.path}",
        "rows": f"{bench.split}: {'; '.join(counts)}{f' (--limit {args.limit})' if args.limit else ''}",
        "divergence": f"over the gold answers of at most {bench.n_quality_rows} rows of each task, evenly spread",
        "speed": f"rounds: {bench.n_speed_rounds}, of at most {bench.n_speed_rows} rows of each task, files in turn, "
        "each in a process of its own",
    } | facts_of(args.command, n_threads=bench.n_threads)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", nargs="?", type=Path, metavar="RUN", help="a finished run, such as outputs/nano")
    add("--types", type=_words, default=DEFAULT_TYPES, metavar="TYPE,…", help=f"default: {','.join(DEFAULT_TYPES)}")
    add(
        "--imatrix", choices=("both", "auto", "without"), default="both",
        help="below 5 bits: each type with and without an importance matrix, as an export makes it, or never with one "
        "(default: %(default)s)",
    )  # fmt: skip
    add(
        "--model", type=Path, nargs="+", default=[], metavar="FILE.gguf",
        help="files of others; without RUN the first is the reference",
    )  # fmt: skip
    add(
        "--split",
        metavar="val|train|challenge|everyday|FILE.jsonl",
        help="raw or split rows (default: the run's own val)",
    )
    add("--limit", type=positive, metavar="N", help="rows of each task, evenly spread (all): quick, and less sure")
    add(
        "--margin", type=share, default=MARGIN, metavar="SHARE",
        help="the loss of accuracy or F1 that is taken for harm (default: %(default)s)",
    )  # fmt: skip
    add("--quality-rows", type=positive, default=200, metavar="N", help="of each task, for divergence (%(default)s)")
    add("--speed-rounds", type=natural, default=3, metavar="N", help="0: no speeds (%(default)s)")
    add("--speed-rows", type=positive, default=32, metavar="N", help="of each task (%(default)s)")
    add("--threads", type=positive, metavar="N", help="threads of llama.cpp (all cores)")
    add("--out", type=Path, metavar="DIR", help="folder of the reports (RUN/reports)")
    add("--work", type=Path, metavar="DIR", help="folder of the files made and the records (RUN/benchmark)")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    if not args.run and not args.model:
        parser.error("name a run, or files with --model")
    args.work = args.work or (args.run or args.model[0].parent) / "benchmark"
    args.out = args.out or (args.run / "reports" if args.run else default_reports_folder(str(args.model[0])))
    args.command = command_line("eval/benchmark_quantizations.py", arguments)
    return args


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    sys.exit(run_cli(main))
