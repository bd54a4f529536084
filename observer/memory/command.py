"""The `observer memory` subcommands: what is known, how it came about, and records for other memory systems."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from observer.memory.store import Event


def add_memory_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    memory = commands.add_parser(
        "memory",
        help="look into a memory that `observer observe --memory` keeps",
        description="Look into a memory that `observer observe … --memory FILE` keeps. Tables on a terminal, JSON "
        "lines in a pipe.",
    )
    actions = memory.add_subparsers(required=True, metavar="ACTION")

    show = actions.add_parser("show", help="what is known now; with --all what was once known too")
    show.add_argument("--all", action="store_true", help="also what is over")
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
    for action, function in ((show, _show), (history, _history), (export, _export)):
        action.add_argument("file", type=Path, metavar="FILE", help="such as memory.sqlite")
        action.add_argument("--about", metavar="NAME", help="only what has this name as subject or object")
        action.set_defaults(run=function)
    for action in (show, history):
        action.add_argument("--json", action="store_true", help="JSON on a terminal too")


def _show(args: argparse.Namespace) -> int:
    from observer.memory.store import Store

    with Store(args.file, must_exist=True) as store:
        facts = store.known(args.about, is_current=not args.all)
    if not _is_for_a_person(args):
        for fact in facts:
            print(fact.model_dump_json(exclude_none=True))
        return 0
    from observer.console.tables import STATE_STYLES, day, open_console, table

    columns = ["subject", "predicate", "object", "state", "when", "from", "until", "last seen"]
    rows = [
        (f.subject, str(f.predicate), f.object, f.state, f.when or "", day(f.valid_at), day(f.invalid_at),
         day(f.last_seen))
        for f in facts
    ]  # fmt: skip
    console = open_console()
    console.print(table(columns, rows, [STATE_STYLES.get(fact.state, "dim") for fact in facts]))
    console.print(f"{len(facts):,} facts")
    return 0


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


def _is_for_a_person(args: argparse.Namespace) -> bool:
    import sys

    return sys.stdout.isatty() and not args.json


def _event_json(event: Event) -> str:
    import json

    operation = event.operation.model_dump(mode="json", exclude_none=True)
    return json.dumps({"seen_at": event.seen_at.isoformat(), "source": event.source} | operation, ensure_ascii=False)
