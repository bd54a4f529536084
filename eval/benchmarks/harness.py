"""What the speed benchmarks share: rounds in turn with every answer on record, and the files they write.

Contestants take turns, A B C A B C, since a shared machine changes its pace within minutes. The facts of a page are
`eval.answers.origin`'s, spreads and ratios of rounds `eval.metrics.spread`'s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.answers.origin import command_line
from eval.reports.tables import bullets, page
from observer.errors import ObserverError
from observer.files import parse_json, write_json, write_jsonl, write_text
from observer.journal import append, open_journal, read_lines

Record = dict[str, Any]

_PATIENCE_S = 20


class Records:
    """The journal of what contestants did; failures of an earlier call are forgotten, and tried again."""

    def __init__(self, path: Path) -> None:
        self.path, self.all = path, list[Record]()
        with open_journal(path, "wait for its end") as stream:
            read_lines(stream, path, [b'{"kind": '], self._take)
        write_jsonl(path, self.all)

    def _take(self, line: bytes) -> str:
        try:
            record = parse_json(line)
            self.all += [record] if record["kind"] != "failed" else []
        except (ValueError, KeyError, TypeError):
            return "no record of ours; delete the file"
        return ""

    def keep(self, kind: str, entrant: str, **values: Any) -> None:
        record = {"kind": kind, "entrant": entrant} | values
        self.all.append(record)
        with open_journal(self.path, "wait for its end") as stream:
            append(stream, self.path, json.dumps(record).encode() + b"\n")

    def has(self, kind: str, entrant: str, **values: Any) -> bool:
        wanted = {"kind": kind, "entrant": entrant} | values
        return any(wanted.items() <= record.items() for record in self.all)


def take_turns(
    names: Sequence[str], n_rounds: int, records: Records, take: Callable[[str, int], Record]
) -> list[Record]:
    """Call `take` with name and number for every round that is not on record, and return all records.

    A contestant that fails is on record as such, and the others go on.
    """
    for number in range(1, n_rounds + 1):
        for name in names:
            if records.has("round", name, round=number) or records.has("failed", name):
                continue
            try:
                records.keep("round", name, round=number, **take(name, number))
            except (ObserverError, RuntimeError, ValueError, OSError) as error:
                records.keep("failed", name, error=str(error) or type(error).__name__)
                say(f"{name}: {error}")
    return records.all


def rounds_of(name: str, records: Sequence[Record]) -> dict[int, Record]:
    """Number -> record of the rounds that a contestant took."""
    return {r["round"]: r for r in records if r["kind"] == "round" and r["entrant"] == name}


def failures(records: Sequence[Record]) -> dict[str, str]:
    """Name -> why there are no figures of it."""
    return {record["entrant"]: record["error"] for record in records if record["kind"] == "failed"}


def stop(process: subprocess.Popen[Any]) -> None:
    """Wait for a process that was asked to end; kill it where it does not."""
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Child:
    """A process of ours that answers each line of its input with a line of JSON.

    What it says beside that goes to `log`, or where ours goes. `ask` raises ObserverError when it ends instead.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("w", encoding="utf-8") if log else contextlib.nullcontext() as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                cwd=folder,
                env=environment,
            )

    def ask(self, line: str) -> Any:
        """Its answer to a line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            ended = f"ended with exit code {self.process.wait()}"
            raise ObserverError(last_words(self.log, ended) if self.log else ended)
        return json.loads(answer)

    def close(self) -> None:
        """End its input, at which it leaves; kill it where it does not."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # of what it did not read
            self.process.stdin.close()
        stop(self.process)
        self.process.stdout.close()


def last_words(log: Path, otherwise: str) -> str:
    """The last line of what a process has said, and where the rest is."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip().removeprefix("error: ") for line in lines if line.strip()]
    return f"{said[-1] if said else otherwise} [{log}]"


def parse_benchmark(
    parser: argparse.ArgumentParser, module: str, arguments: Sequence[str] | None, out: str = "docs/benchmarks"
) -> argparse.Namespace:
    """What all benchmarks take, parsed; `command` is how it was called."""
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    args.command = command_line(f"-m {module}", arguments)
    return args


def write_benchmark(
    stem: Path, title: str, facts: Mapping[str, Any], parts: Sequence[str], figures: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write `STEM.md`, facts and parts, and `STEM.json`, all figures; the last line of stdout is the summary."""
    report = stem.with_name(f"{stem.name}.md")
    write_json(stem.with_name(f"{stem.name}.json"), {**facts, **figures})
    write_text(report, page(title, bullets(facts), *parts))
    print(f"wrote {report}")
    print(json.dumps({"report": str(report), **summary}))


def did_not_run(failed: Mapping[str, str]) -> list[str]:
    """The section of those that failed, if any."""
    return ["## Did not run", bullets({f"`{name}`": error for name, error in failed.items()})] if failed else []


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
