"""`observer package`: the parser, and what the command prints. What it needs is imported when it is called."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from observer.errors import ObserverError

if TYPE_CHECKING:
    from observer.export.package import Checked

N_ROWS = 20


def add_package_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    package = commands.add_parser(
        "package",
        help="make Ollama models of a run and check that they answer as trained",
        description="Upload a GGUF of the run to a running Ollama, create NAME, NAME-grade and NAME-extract, and "
        "compare their prompts and greedy answers with ours. Without a server: the commands to type.",
    )
    package.add_argument("run_folder", type=Path, metavar="RUN", help="such as outputs/nano")
    package.add_argument("--ollama", required=True, metavar="NAME", help="the models' name, such as observer")
    package.add_argument(
        "--quantization", metavar="TYPE",
        help="such as q8_0, or `adapter` to put the adapter GGUF over Ollama's qwen3 (default: the last of the config)",
    )  # fmt: skip
    package.add_argument("--host", metavar="URL", help="the server (default: OLLAMA_HOST, else this machine)")
    package.add_argument("--no-check", action="store_true", help="create the models and ask them nothing")
    package.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Create and check; 1 when no server answers or the models answer otherwise."""
    from observer.export.package import check, check_name, create_commands, create_models, write_package
    from observer.ollama.client import NoServer, OllamaClient, Patience, server_version
    from observer.runs.finished_run import read_run

    check_name(args.ollama)
    found = read_run(args.run_folder)
    quantization = args.quantization or found.config.export.quantizations[-1]
    modelfiles = write_package(found, quantization)
    try:
        version = server_version(args.host)
    except NoServer as error:
        return _without_server(error, create_commands(args.ollama, modelfiles))
    with OllamaClient(args.host, Patience(timeout_s=600.0, max_retries=4), say=_say) as client:
        _say(f"Ollama {version} at {client.url}")
        names = create_models(client, args.ollama, found, quantization)
        print(f"created {', '.join(names)} from {found.paths.gguf(quantization)}")
        if args.no_check:
            return 0
        checked = check(client, found, quantization, args.ollama, N_ROWS)
    print(_prompts_line(checked.n_prompts))
    print(_answers_line(checked, found.split.val))
    for difference in checked.differences:
        told = "not told" if difference.nats is None else f"{difference.nats:.3f}"
        _say(f"{difference.place}; nats between the two tokens: {told}")
    if not checked.is_sound:
        raise ObserverError(_unsound(checked, version))
    return 0


def _without_server(error: Exception, commands: list[str]) -> int:
    print(f"error: {error}; then run the same command again, or:", file=sys.stderr)
    print("\n".join(commands))
    return 1


def _prompts_line(n_prompts: int) -> str:
    if not n_prompts:
        return "prompts: not compared; this server is older than 0.11.5 and cannot show them"
    return f"prompts: {n_prompts} of {n_prompts} are the training prompt"


def _answers_line(checked: Checked, val: Path) -> str:
    if not checked.n_answers:
        return f"answers: not compared; no rows in {val}, or an adapter over other weights"
    n_equal, n_ties = checked.n_answers - len(checked.differences), sum(d.is_near_tie for d in checked.differences)
    line = f"answers: {n_equal} of {checked.n_answers} greedy answers equal llama-cpp-python's"
    return line + (f", {n_ties} more part at a near tie" if n_ties else "")


def _unsound(checked: Checked, version: str) -> str:
    from observer.ollama.near_ties import NEAR_TIE_NATS

    unsound = [difference for difference in checked.differences if not difference.is_near_tie]
    what = f"{len(unsound)} of {checked.n_answers} answers part from llama-cpp-python's"
    if all(difference.nats is None for difference in unsound):
        return (
            f"{what}, and Ollama {version} does not say by how much; from 0.12.11 on it does: update it, or look at "
            "the places above and give --no-check"
        )
    return (
        f"{what} by more than {NEAR_TIE_NATS:g} nats, which is no rounding; is the server's llama.cpp as new as "
        "llama-cpp-python's? Update the older one, or package f16 to see whether the quantization is at fault"
    )


def _say(line: str) -> None:
    print(f"package: {line}", file=sys.stderr, flush=True)
