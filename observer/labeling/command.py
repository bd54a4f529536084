"""The `observer label` subcommand. What it needs is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from observer.console.arguments import amount, natural, positive, seconds

if TYPE_CHECKING:
    from observer.labeling.pricing import Price
    from observer.labeling.server import Endpoint

VOTES_TEMPERATURE = 0.7


def add_label_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    label = commands.add_parser(
        "label",
        help="label real conversations with a large model",
        description="Label conversations through any server with OpenAI's chat API. The key is read from "
        "OPENAI_API_KEY. Answers are kept in a ledger: a run that was cut resumes, and nothing is paid twice.",
    )
    label.add_argument("input", metavar="IN", help="raw rows, OpenAI messages or USER:/ASSISTANT: text; - for stdin")
    label.add_argument("--task", required=True, choices=["grade", "extract", "both"])
    label.add_argument("--out", required=True, type=Path, metavar="FILE", help="labelled rows; with --audit the report")
    label.add_argument("--model", required=True, metavar="NAME", help="such as gpt-4o, or a model of your own server")
    label.add_argument("--base-url", metavar="URL", help="such as http://localhost:11434/v1 (default: OpenAI's)")
    _add_how(label)
    _add_money(label)
    _add_files(label)
    label.set_defaults(run=_label)


def _add_how(label: argparse.ArgumentParser) -> None:
    add = label.add_argument_group("how to ask").add_argument
    add("--votes", type=positive, default=1, metavar="K", help="answers per row; their agreement is the "
        "confidence (default: %(default)s)")  # fmt: skip
    add("--temperature", type=amount, help=f"(default: 0; {VOTES_TEMPERATURE} with more than one vote)")
    add("--concurrency", type=positive, default=8, metavar="N", help="calls at once (default: 8)")
    add("--timeout", type=seconds, default=60.0, metavar="S", help="seconds for one try (default: 60)")
    add("--max-retries", type=natural, default=5, metavar="N", help="tries after the first of a call (default: 5)")
    add("--limit", type=positive, metavar="N", help="only the first N readable rows")
    add("--every-turn", action="store_true", help="label every user turn of a conversation, not only the last")
    add("--max-characters", type=positive, default=20_000, metavar="N", help="set longer rows aside (default: 20000)")
    add("--audit", action="store_true", help="compare answers with the gold of the rows; the gold stays as it is")


def _add_money(label: argparse.ArgumentParser) -> None:
    add = label.add_argument_group("money").add_argument
    add("--dry-run", action="store_true", help="estimate tokens and cost; send nothing")
    add("--budget-usd", type=amount, metavar="X", help="stop before the call with which the ledger would cost more")
    add("--price", metavar="IN,OUT", help="USD per million prompt and completion tokens")


def _add_files(label: argparse.ArgumentParser) -> None:
    add = label.add_argument_group("files").add_argument
    add("--ledger", type=Path, metavar="FILE", help="every answer, as it came (default: IN.ledger.jsonl beside --out)")
    add("--quarantine", type=Path, metavar="FILE", help="what was set aside (default: OUT.quarantine.jsonl)")


def _label(args: argparse.Namespace) -> int:
    from observer.labeling.jobs import Sampling
    from observer.labeling.label import Files, Request, estimate, label
    from observer.labeling.run import Terms
    from observer.prompts import Task
    from observer.turns.inputs import Reading

    temperature = args.temperature
    if temperature is None:
        temperature = VOTES_TEMPERATURE if args.votes > 1 else 0.0
    files, endpoint = Files.named(args.input, args.out, args.ledger, args.quarantine), _endpoint(args)
    request = Request(
        tasks=tuple(Task) if args.task == "both" else (Task(args.task),),
        sampling=Sampling(args.model, temperature, endpoint.identity),
        votes=args.votes,
        is_audit=args.audit,
        limit=args.limit,
        reading=Reading(args.every_turn, args.max_characters),
    )
    terms = Terms(args.concurrency, _price(args, endpoint.is_loopback), args.budget_usd)
    if args.dry_run:
        estimate(files, request, terms)
    else:
        label(files, request, terms, endpoint)
    return 0


def _endpoint(args: argparse.Namespace) -> Endpoint:
    from urllib.parse import urlsplit

    from observer.errors import ObserverError
    from observer.labeling.server import OPENAI_URL, Endpoint

    base_url = args.base_url or OPENAI_URL
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ObserverError(f"--base-url {base_url}: no address; http://HOST:PORT/v1 is expected")
    return Endpoint(base_url, args.timeout, args.max_retries)


def _price(args: argparse.Namespace, is_loopback: bool) -> Price | None:
    """The price given, the published one, nothing for a server on this machine, or None: unknown."""
    from observer.errors import ObserverError
    from observer.labeling.pricing import PRICES, Price, parse_price

    price = parse_price(args.price) if args.price else PRICES.get(args.model) or (Price(0, 0) if is_loopback else None)
    if price is None and (args.dry_run or args.budget_usd is not None):
        raise ObserverError(
            f"--model {args.model}: its price is not known here; give --price IN,OUT (USD per million tokens)"
        )
    return price
