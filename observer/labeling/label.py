"""`observer label` from the input to the files: what the pieces of this package do together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from observer.errors import ObserverError, printable, raise_all
from observer.files import write_json
from observer.labeling.answers_file import open_ledger, read_ledger
from observer.labeling.compare import compare, gold_of, has_gold, render
from observer.labeling.jobs import Outcome, Sampling, jobs_of, next_call, outcome_of
from observer.labeling.outputs import TaskResult, task_path, write_labelled, write_quarantine
from observer.labeling.prompts import PROMPT_VERSION
from observer.labeling.run import Run, Terms
from observer.labeling.server import Endpoint
from observer.prompts import Task
from observer.turns.inputs import STDIN, Inputs, Item, Reading, read_bytes, read_inputs
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
    votes: int = 1
    is_audit: bool = False
    limit: int | None = None
    reading: Reading = field(default_factory=Reading)


@dataclass
class Plan:
    """The rows of the input, and those that each task asks about."""

    inputs: Inputs
    items: dict[Task, list[Item]]
    rejected: dict[Task, list[tuple[Item, Outcome]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan(files: Files, request: Request) -> Plan:
    """Read the input and choose what to ask about. Raises ObserverError when there is nothing."""
    inputs = read_inputs(read_bytes(files.source), files.source, request.reading)
    if not inputs.items and not inputs.unreadable:
        raise ObserverError(f"{files.source}: no rows; raw rows, OpenAI messages or USER:/ASSISTANT: text are expected")
    chosen = inputs.items if request.limit is None else inputs.items[: request.limit]
    made = Plan(inputs, {task: list(chosen) for task in request.tasks})
    total, bad = len(inputs.items) + len(inputs.unreadable), len(inputs.unreadable)
    beyond = len(inputs.items) - len(chosen)
    counts = f"input: {total:,} rows = {len(chosen):,} readable + {bad:,} unreadable (quarantined)"
    made.notes.append(counts + (f" + {beyond:,} beyond --limit" if beyond else ""))
    made.notes += commonest(row.reason for row in inputs.unreadable)
    if inputs.unused_fields:
        made.notes.append(unused_fields(inputs.unused_fields))
    if request.is_audit:
        _keep_gold(made)
    return made


def _keep_gold(made: Plan) -> None:
    for task, items in made.items.items():
        with_gold = [item for item in items if has_gold(item, task)]
        faults = [(item, gold_of(item, task).fault) for item in with_gold]
        made.items[task] = [item for item, fault in faults if not fault]
        made.rejected[task] = [(item, Outcome(fault=fault)) for item, fault in faults if fault]
        if len(items) > len(with_gold):
            made.notes.append(f"{task}: {len(items) - len(with_gold):,} rows without gold are not asked about")
    if not any(made.items.values()):
        raise ObserverError("--audit: no row has gold to compare with; raw rows with label, or entities, are expected")


def estimate(files: Files, request: Request, terms: Terms) -> list[str]:
    """What a run would send and cost, in lines; nothing is sent, nothing written.

    Raises ObserverError, after printing the reasons, when no row can be read.
    """
    made, (answers, spent_usd) = plan(files, request), read_ledger(files.ledger)
    lines, cost_usd = list(made.notes), 0.0
    for task, items in made.items.items():
        jobs = jobs_of(items, task, request.votes)
        calls = [call for job in jobs if (call := next_call(request.sampling, job, answers))]
        prompt, completion = sum(call.tokens[0] for call in calls), sum(call.tokens[1] for call in calls)
        cost_usd += terms.price.cost_usd(prompt, completion) if terms.price else 0.0
        lines.append(
            f"{task}: {len(calls):,} calls to send ({len(jobs) - len(calls):,} in the ledger), "
            f"about {prompt:,} prompt + {completion:,} completion tokens"
        )
    if not made.inputs.items:
        print("\n".join(lines), flush=True)
        raise ObserverError(f"{files.source}: no row can be read, for the reasons above; nothing was sent")
    return [*lines, f"cost: about ${cost_usd:.4f}; ${spent_usd:.4f} in the ledger; nothing was sent"]


def label(files: Files, request: Request, terms: Terms, endpoint: Endpoint) -> list[str]:
    """Ask for what the ledger lacks, write the outputs, and tell the counts in lines.

    Raises ObserverError, after writing what is done, when some rows are left for the next run, or none is labelled.
    """
    files.check(request.tasks)
    made = plan(files, request)
    jobs = [job for task, items in made.items.items() for job in jobs_of(items, task, request.votes)]
    with open_ledger(files.ledger) as ledger:
        before_usd, run = ledger.cost_usd, Run(request.sampling, ledger, terms)
        try:
            run.ask_all(jobs, endpoint)
        except (KeyboardInterrupt, ObserverError):
            print("\n".join(_finish(files, request, made, run)[0]), flush=True)
            raise
        lines, n_labelled = _finish(files, request, made, run)
        lines.append(f"cost: ${ledger.cost_usd - before_usd:.4f} in this run, ${ledger.cost_usd:.4f} in the ledger")
        if run.stop or run.last_fault:
            print("\n".join(lines), flush=True)
            raise ObserverError(run.stop or f"some rows are left; {run.last_fault}; the same command resumes")
    if not n_labelled:
        print("\n".join(lines), flush=True)
        raise ObserverError(f"{files.source}: no row was labelled, for the reasons above; {files.quarantine} has all")
    return lines


def commonest(reasons: Iterable[str], limit: int = 3) -> list[str]:
    """A line for each of the commonest reasons, with how many rows it sets aside."""
    counts = Counter(reasons)
    lines = [f"  {count:,} × {printable(reason)[:200]}" for reason, count in counts.most_common(limit)]
    return lines + [f"  … and {len(counts) - limit:,} other reasons"] * (len(counts) > limit)


def _finish(files: Files, request: Request, made: Plan, run: Run) -> tuple[list[str], int]:
    """The counts in lines, and how many rows are labelled, by either task."""
    results = [_collect(task, request, made, run) for task in request.tasks]
    lines = list(made.notes)
    for result in results:
        lines += [result.summary, *commonest(outcome.fault for _, outcome in result.quarantined)]
    if request.is_audit and any(result.labelled for result in results):
        lines += _write_audit(files.out, results, request.sampling.model)
    elif not request.is_audit:
        for result in results:
            write_labelled(task_path(files.out, result.task, request.tasks), result, request.sampling.model)
    if count := write_quarantine(files.quarantine, made.inputs.unreadable, results):
        lines.append(f"quarantine: {count:,} lines in {files.quarantine}")
    return lines, sum(len(result.labelled) for result in results)


def _collect(task: Task, request: Request, made: Plan, run: Run) -> TaskResult:
    result = TaskResult(task, quarantined=list(made.rejected.get(task, [])))
    for item in made.items[task]:
        jobs = jobs_of([item], task, request.votes)
        result.add(item, outcome_of(request.sampling, jobs, run.ledger.answers, run.refused))
    return result


def _write_audit(out: Path, results: Sequence[TaskResult], model: str) -> list[str]:
    reports = {result.task: compare(result) for result in results}
    counts = {str(result.task): result.summary for result in results}
    tasks = {str(task): report for task, report in reports.items()}
    write_json(
        out, {"model": model, "prompt_version": PROMPT_VERSION, "counts": counts, "tasks": tasks}, is_private=True
    )
    return [*(render(task, report) for task, report in reports.items()), f"report: {out}"]
