"""`observer label` from the input to the files: what the pieces of this package do together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from observer.errors import ObserverError, printable, raise_all
from observer.files import write_json
from observer.labeling.answers_file import open_ledger, read_ledger
from observer.labeling.compare import compare, has_gold, read_gold, render
from observer.labeling.jobs import Outcome, Sampling, jobs_of, next_call, outcome_of
from observer.labeling.outputs import TaskResult, task_path, write_labelled, write_quarantine
from observer.labeling.prompts import PROMPT_VERSION
from observer.labeling.run import Run, Terms
from observer.labeling.server import Endpoint
from observer.prompts import Task
from observer.turns.inputs import STDIN, Inputs, Reading, read_bytes, read_inputs
from observer.turns.row_fields import unused_fields


@dataclass(frozen=True)
class Files:
    """Where a run reads and writes. Without other names, ledger and quarantine stand beside `out`."""

    source: str
    out: Path
    ledger: Path
    quarantine: Path

    @staticmethod
    def named(source: str, out: Path, ledger: Path | None = None, quarantine: Path | None = None) -> Files:
        stem = "stdin" if source == STDIN else Path(source).stem
        return Files(
            source,
            out,
            ledger or out.with_name(f"{stem}.ledger.jsonl"),
            quarantine or out.with_name(f"{out.stem}.quarantine.jsonl"),
        )

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises ObserverError when one file would overwrite another."""
        outs = dict.fromkeys([self.out, *(task_path(self.out, task, tasks) for task in tasks)], "--out")
        seen = {} if self.source == STDIN else {Path(self.source).resolve(): "the input"}
        faults = []
        for path, name in [*outs.items(), (self.ledger, "--ledger"), (self.quarantine, "--quarantine")]:
            other = seen.setdefault(path.resolve(), name)
            if other != name:
                faults.append(f"{name} {path}: the same file as {other}; name another")
        raise_all(faults)


@dataclass(frozen=True)
class Request:
    """What to label, and how."""

    tasks: tuple[Task, ...]
    sampling: Sampling
    votes: int
    is_audit: bool
    limit: int | None
    reading: Reading


@dataclass
class Plan:
    """The rows of the input, and what each task asks about."""

    inputs: Inputs
    results: list[TaskResult]


def plan(files: Files, request: Request) -> Plan:
    """Read the input, choose what to ask about and say so. Raises ObserverError when there is nothing."""
    inputs = read_inputs(read_bytes(files.source), files.source, request.reading)
    if not inputs.items and not inputs.unreadable:
        raise ObserverError(f"{files.source}: no rows; raw rows, OpenAI messages or USER:/ASSISTANT: text are expected")
    chosen = inputs.items[: request.limit]
    total, bad = len(inputs.items) + len(inputs.unreadable), len(inputs.unreadable)
    beyond = len(inputs.items) - len(chosen)
    counts = f"input: {total:,} rows = {len(chosen):,} readable + {bad:,} unreadable (quarantined)"
    say(counts + (f" + {beyond:,} beyond --limit" if beyond else ""))
    say(*commonest(row.reason for row in inputs.unreadable))
    if inputs.unused_fields:
        say(unused_fields(inputs.unused_fields))
    made = Plan(inputs, [TaskResult(task, list(chosen)) for task in request.tasks])
    if request.is_audit:
        _keep_gold(made)
    return made


def _keep_gold(made: Plan) -> None:
    for result in made.results:
        with_gold = [item for item in result.asked if has_gold(item, result.task)]
        if left_out := len(result.asked) - len(with_gold):
            say(f"{result.task}: {left_out:,} rows without gold are not asked about")
        faults = [(item, "; ".join(read_gold(item, result.task)[1])) for item in with_gold]
        result.asked = [item for item, fault in faults if not fault]
        result.quarantined = [(item, Outcome(fault=f"gold: {fault}")) for item, fault in faults if fault]
    if not any(result.asked for result in made.results):
        raise ObserverError("--audit: no row has gold to compare with; raw rows with label, or entities, are expected")


def estimate(files: Files, request: Request, terms: Terms) -> None:
    """Say what a run would send and cost; nothing is sent, nothing written.

    Raises ObserverError, after the reasons, when no row can be read.
    """
    made, (answers, spent_usd) = plan(files, request), read_ledger(files.ledger)
    cost_usd = 0.0
    for result in made.results:
        jobs = jobs_of(result.asked, result.task, request.votes)
        calls = [call for job in jobs if (call := next_call(request.sampling, job, answers))]
        prompt, completion = sum(call.tokens[0] for call in calls), sum(call.tokens[1] for call in calls)
        cost_usd += terms.price.cost_usd(prompt, completion) if terms.price else 0.0
        say(
            f"{result.task}: {len(calls):,} calls to send ({len(jobs) - len(calls):,} in the ledger), "
            f"about {prompt:,} prompt + {completion:,} completion tokens"
        )
    if not made.inputs.items:
        raise ObserverError(f"{files.source}: no row can be read, for the reasons above; nothing was sent")
    say(f"cost: about ${cost_usd:.4f}; ${spent_usd:.4f} in the ledger; nothing was sent")


def label(files: Files, request: Request, terms: Terms, endpoint: Endpoint) -> None:
    """Ask for what the ledger lacks, write the outputs, and say the counts.

    Raises ObserverError, after writing what is done, when some rows are left for the next run, or none is labelled.
    """
    files.check(request.tasks)
    made = plan(files, request)
    jobs = [job for result in made.results for job in jobs_of(result.asked, result.task, request.votes)]
    with open_ledger(files.ledger) as ledger:
        before_usd, run = ledger.cost_usd, Run(request.sampling, ledger, terms)
        try:
            run.ask_all(jobs, endpoint)
        finally:  # what is done is written, however the run ends
            _finish(files, request, made, run)
        say(f"cost: ${ledger.cost_usd - before_usd:.4f} in this run, ${ledger.cost_usd:.4f} in the ledger")
        if run.stop or run.last_fault:
            raise ObserverError(run.stop or f"some rows are left; {run.last_fault}; the same command resumes")
    if not any(result.labelled for result in made.results):
        raise ObserverError(f"{files.source}: no row was labelled, for the reasons above; {files.quarantine} has all")


def say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def commonest(reasons: Iterable[str], limit: int = 3) -> list[str]:
    """A line for each of the commonest reasons, with how many rows it sets aside."""
    counts = Counter(reasons)
    lines = [f"  {count:,} × {printable(reason)[:200]}" for reason, count in counts.most_common(limit)]
    return lines + [f"  … and {len(counts) - limit:,} other reasons"] * (len(counts) > limit)


def _finish(files: Files, request: Request, made: Plan, run: Run) -> None:
    """Sort the rows by what became of them, write them, and say how many they are."""
    for result in made.results:
        for item in result.asked:
            jobs = jobs_of([item], result.task, request.votes)
            result.add(item, outcome_of(request.sampling, jobs, run.ledger.answers, run.refused))
        say(result.summary, *commonest(outcome.fault for _, outcome in result.quarantined))
    if request.is_audit and any(result.labelled for result in made.results):
        _write_audit(files.out, made.results, request.sampling.model)
    elif not request.is_audit:
        for result in made.results:
            write_labelled(task_path(files.out, result.task, request.tasks), result, request.sampling.model)
    if count := write_quarantine(files.quarantine, made.inputs.unreadable, made.results):
        say(f"quarantine: {count:,} lines in {files.quarantine}")


def _write_audit(out: Path, results: Sequence[TaskResult], model: str) -> None:
    counts = {str(result.task): result.summary for result in results}
    tasks = {str(result.task): compare(result) for result in results}
    report = {"model": model, "prompt_version": PROMPT_VERSION, "counts": counts, "tasks": tasks}
    write_json(out, report, is_private=True)
    say(*(render(task, found) for task, found in tasks.items()), f"report: {out}")
