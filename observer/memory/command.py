"""The `observer memory` subcommands: what is known, how it came about, and records for other memory systems."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date

    from observer.memory.facts import Fact
    from observer.memory.store import Event


def add_memory_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    memory = commands.add_parser(
        "memory",
        help="look into a memory that `observer observe --memory` keeps",
        description="Look into a memory that `observer observe … --memory FILE` keeps. Tables on a terminal, JSON "
        "lines in a pipe.",
    )
    actions = memory.add_subparsers(required=True, metavar="ACTION")

    show = actions.add_parser(
        "show",
        help="what is known now, or what held on a day",
        description="What is known now. With --as-of, what held at the end of a day, twice: as was known then, from "
        "the conversations up to that day, and as is known now, from those since then too.",
    )
    which = show.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="also what is over")
    which.add_argument("--as-of", type=_day, metavar="DAY", help="what held at the end of this day in UTC, such as "
        "2026-03-01; in JSON, `known` is then or now")  # fmt: skip
    history = actions.add_parser("history", help="what was added and ended, when, and by which exchange")
    export = actions.add_parser(
        "export",
        help="records for another memory system, as JSON lines",
        description="graphiti: {nodes, edges} as its EntityNode and EntityEdge, ended facts included. "
        "mem0: a MemoryItem a line, of what is known now.",
    )
    export.add_argument("--to", required=True, choices=["graphiti", "mem0"])
    export.add_argument("--group-id", default="user", metavar="ID", help="whose memory it is, for graphiti "
        "(default: %(default)s)")  # fmt: skip
    forget = actions.add_parser(
        "forget",
        help="end a fact because you ask for it, or delete it",
        description="End a fact: it is no longer known as current, and its history stays. With --delete it goes from "
        "the file with all that tells of the same two names and predicate, and reading the same log again does not "
        "bring it back.",
    )
    for action, function in ((show, _show), (history, _history), (export, _export), (forget, _forget)):
        action.add_argument("file", type=Path, metavar="FILE", help="such as memory.sqlite")
        action.set_defaults(run=function)
    for action in (show, history, export):
        action.add_argument("--about", metavar="NAME", help="only what has this name as subject or object")
    forget.add_argument("id", metavar="ID", help="of the fact, as `observer memory show --json` has it")
    forget.add_argument("--delete", action="store_true", help="leave nothing of it in the file")
    for action in (show, history):
        action.add_argument("--json", action="store_true", help="JSON on a terminal too")


def _show(args: argparse.Namespace) -> int:
    from observer.memory.store import Store

    with Store(args.file, must_exist=True) as store:
        if args.as_of:
            from observer.memory.as_of import as_of

            held = as_of(store, args.as_of, args.about)
            parts = {"then": held.known_then, "now": held.known_now}
        else:
            parts = {"": store.known(args.about, is_current=not args.all)}
    for known, facts in parts.items():
        if not _is_for_a_person(args):
            _print_json(facts, {"known": known} if known else {})
        else:
            _print_facts(facts, {"": "", "then": f"{args.as_of}, as known then", "now": "as known now"}[known])
    return 0


def _print_json(facts: list[Fact], head: dict[str, str]) -> None:
    import json

    for fact in facts:
        record = head | fact.model_dump(mode="json", exclude_none=True)
        print(json.dumps(record, ensure_ascii=False, separators=(",", ":")))


def _print_facts(facts: list[Fact], heading: str) -> None:
    from observer.console.tables import STATE_STYLES, day, open_console, table

    columns = ["subject", "predicate", "object", "state", "when", "from", "until", "last seen"]
    rows = [
        (f.subject, str(f.predicate), f.object, f.state, f.when or "", day(f.valid_at), day(f.invalid_at),
         day(f.last_seen))
        for f in facts
    ]  # fmt: skip
    console = open_console()
    if heading:
        console.print(heading)
    console.print(table(columns, rows, [STATE_STYLES.get(fact.state, "dim") for fact in facts]))
    console.print(f"{len(facts):,} facts")


def _history(args: argparse.Namespace) -> int:
    from observer.memory.store import Store

    with Store(args.file, must_exist=True) as store:
        events = store.history(args.about)
    if not _is_for_a_person(args):
        for event in events:
            print(_event_json(event))
        return 0
    from observer.console.tables import day, open_console, table

    columns = ["said", "what", "why", "fact", "exchange"]
    rows = [
        (day(e.seen_at), str(e.operation.kind), str(e.operation.reason), e.operation.fact.as_text(), e.source)
        for e in events
    ]
    styles = ["green" if event.operation.kind == "ADD" else "red" for event in events]
    open_console().print(table(columns, rows, styles))
    return 0


def _export(args: argparse.Namespace) -> int:
    import json

    from observer.memory.graphiti import to_graphiti
    from observer.memory.mem0 import to_mem0
    from observer.memory.store import Store

    with Store(args.file, must_exist=True) as store:
        facts = store.known(args.about, is_current=args.to == "mem0")
        if args.to == "graphiti":
            graph = to_graphiti(facts, args.group_id, store.sources_of(), store.attributes())
            records = [graph._asdict()]
        else:
            records = [to_mem0(fact) for fact in facts]
    for record in records:
        print(json.dumps(record, ensure_ascii=False))
    return 0


def _day(text: str) -> date:
    from datetime import date

    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: a day such as 2026-03-01 is expected") from None


def _forget(args: argparse.Namespace) -> int:
    from observer.memory.store import Store

    with Store(args.file, must_exist=True) as store:
        fact = store.forget(args.id, delete=args.delete)
    print(f"{'deleted' if args.delete else 'ended'}: {fact.as_text()}")
    return 0


def _is_for_a_person(args: argparse.Namespace) -> bool:
    import sys

    return sys.stdout.isatty() and not args.json


def _event_json(event: Event) -> str:
    import json

    operation = event.operation.model_dump(mode="json", exclude_none=True)
    return json.dumps({"seen_at": event.seen_at.isoformat(), "source": event.source} | operation, ensure_ascii=False)
