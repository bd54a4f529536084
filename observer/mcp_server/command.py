"""The `observer mcp` subcommand. What it needs is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from observer.console.arguments import positive

DESCRIPTION = """\
Give an assistant a memory: an MCP server over standard input and output, which the assistant starts by itself. It has
four tools: observe (grade an exchange and remember what it states), recall (what is known, now or as of a day),
history (what was learned and ended) and forget (end a fact, or delete it). The model runs in this process, or with
ollama:NAME on the server of OLLAMA_HOST; nothing else is sent anywhere but to the assistant.
"""
EPILOG = """\
Write this into the configuration of the assistant (docs/mcp.md has the place for some of them), with absolute paths:
  {"mcpServers": {"memory": {"command": "/path/to/.venv/bin/observer",
                             "args": ["mcp", "--model", "/path/to/outputs/smollm2-observer",
                                      "--memory", "/path/to/me.sqlite"]}}}
"""


def add_mcp_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    mcp = commands.add_parser(
        "mcp",
        help="give a memory to an assistant that speaks MCP",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = mcp.add_argument
    add("--model", metavar="SPEC", help="FILE.gguf, a run's folder, ollama:NAME or hf:FOLDER "
        "(default: the newest run in outputs/, else ollama:qwen3-observer)")  # fmt: skip
    add("--memory", type=Path, required=True, metavar="FILE.sqlite", help="the memory; made when missing, and other "
        "programs may read and write it at the same time")  # fmt: skip
    add("--threads", type=positive, metavar="N", help="threads of a model in this process (default: all cores)")
    mcp.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import importlib.util
    import sys

    from observer.errors import ObserverError

    if importlib.util.find_spec("mcp") is None:
        raise ObserverError("the package mcp is not installed: pip install -e '.[mcp]'")
    from observer.client import Observer
    from observer.mcp_server.server import build_server
    from observer.memory.store import Store
    from observer.observe.run import default_model

    spec = args.model or default_model()
    print(f"model: {spec}", file=sys.stderr)
    with Store(args.memory) as store, Observer(spec, n_threads=args.threads) as observer:
        build_server(observer, store).run()
    return 0
