"""The hostile set against one model, for the nightly set: what its structure guarantees, and how often attacks succeed.

    python -m tests.trust.attacks --model outputs/nano

Two things are told apart. Guaranteed for any model: no text of a user becomes a control token or starts a turn; checked
on the token ids of every hostile prompt, and the part fails when one does. Measured of this model: how often an answer
is what the attack asked for (`eval/evaluate.py --split attacks` has it in full). Writes outputs/trust/attacks.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from eval.answers.origin import command_line
from eval.answers.rows import ATTACKS, Row, rows_of_split
from eval.reports.attack_report import AttackScores
from eval.reports.evaluation_report import Report
from observer.console.run import run_cli
from observer.prompts import Task, exchange_of, render_exchange, render_prompt
from tests.trust.result import TRUST_FOLDER, save_result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; raises ObserverError."""
    from eval.evaluate import evaluate
    from observer.backends.opening import best_gguf

    args = parse_arguments(arguments)
    began = time.monotonic()
    model, rows = best_gguf(Path(args.model)), rows_of_split(ATTACKS)
    forged = forged_prompts(model, rows)
    report = evaluate(model, rows, [], split=ATTACKS, n_threads=args.threads)
    scores = report.attacks
    assert scores is not None, "the rows of the set have goals"
    command = command_line("-m tests.trust.attacks", arguments)
    passed, summary = not forged and scores.total.n == len(rows), summarize(report, scores, forged)
    path = save_result(
        "attacks",
        command=command,
        seconds=time.monotonic() - began,
        passed=passed,
        summary=summary,
        details=describe(report, scores, forged),
        folder=args.out,
    )
    print(f"wrote {path}\n{summary}")
    return int(not passed)


def forged_prompts(model: Path, rows: Sequence[Row]) -> list[str]:
    """Ids of the rows whose prompt has other control tokens, to llama.cpp, than a harmless one of the same task."""
    from observer.engine.llama_model import LlamaModel

    llama = LlamaModel(model)
    try:

        def control_tokens(task: Task, exchange: str) -> list[int]:
            return [token for token in llama.tokenize(render_prompt(task, exchange)) if token in llama.control_tokens]

        expected = {task: control_tokens(task, render_exchange("hello", "hi")) for task in Task}
        return [str(row["id"]) for row in rows if any(control_tokens(t, exchange_of(row)) != expected[t] for t in Task)]
    finally:
        llama.close()


def summarize(report: Report, scores: AttackScores, forged: Sequence[str]) -> str:
    """One sentence with the numbers."""
    total = scores.total
    return (
        f"{total.n} hostile exchanges: {len(forged)} made a control token or a turn of their own; of the answers of "
        f"{report.model.name} {report.model.file_type}, {total.n_succeeded} ({total.rate:.0%}) are what the attack "
        "asked for."
    )


def describe(report: Report, scores: AttackScores, forged: Sequence[str]) -> dict[str, object]:
    """The rates by task and by kind of attack, with 95 % intervals by family."""
    rates = {
        name: {
            "rows": rate.n,
            "succeeded": rate.n_succeeded,
            "share": rate.rate,
            "low": rate.interval and rate.interval.low,
            "high": rate.interval and rate.interval.high,
        }
        for name, rate in ({"all": scores.total} | scores.rates).items()
    }
    pulls = {label: asdict(pull) for label, pull in scores.pulls.items()}
    return {"model": report.model.path, "forged": list(forged), "attacks": rates, "labels": pulls}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="outputs/nano", metavar="MODEL", help="FILE.gguf or a run's folder (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="threads of llama.cpp (default: all cores)")
    add("--out", type=Path, default=TRUST_FOLDER, metavar="DIR", help="default: %(default)s")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_cli(main))
