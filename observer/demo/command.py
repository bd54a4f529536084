"""The `observer demo` subcommand. What it needs is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from observer.console.arguments import natural, positive

DESCRIPTION = """\
Serve a page on which a conversation is typed or pasted and the model's answers are seen: the grade with its
probabilities, the names it found, a graph of what is stated, the memory as it grows, and how long it took.
The page is for this machine alone, and loads nothing from any other.
"""
EPILOG = """\
examples:
  observer demo
  observer demo --model outputs/nano --compare outputs/nano/gguf/nano-q4_k_m.gguf
  observer demo --model ollama:qwen3-observer --memory memory.sqlite
"""


def add_demo_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="open a page to try a model in",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = demo.add_argument
    add("--model", metavar="SPEC", help="FILE.gguf, a run's folder, ollama:NAME or hf:FOLDER "
        "(default: the newest run in outputs/, else ollama:qwen3-observer)")  # fmt: skip
    add("--compare", metavar="SPEC", help="a second model, shown beside the first")
    add("--memory", type=Path, metavar="FILE.sqlite", help="keep what is stated in this memory; without it, each "
        "visit to the page has a memory of its own that ends with the visit")  # fmt: skip
    add("--threads", type=positive, metavar="N", help="threads of a model in this process (default: all cores)")
    add("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=natural, default=7860, help="0 takes any that is free (default: %(default)s)")
    demo.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import contextlib
    import sys

    from observer.demo.server import check_gradio, listen, serve

    check_gradio()
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listen(args.host, args.port))  # what is wrong with a port is told at once
        from observer.client import Observer
        from observer.demo.app import build_page, warm_up
        from observer.memory.store import Store
        from observer.observe.run import default_model

        specs = [args.model or default_model(), *([args.compare] if args.compare else [])]
        print(f"model: {', '.join(specs)}", file=sys.stderr)
        observers = [stack.enter_context(Observer(spec, n_threads=args.threads)) for spec in specs]
        warm_up(observers)
        store = stack.enter_context(Store(args.memory)) if args.memory else None
        serve(build_page(observers, store), listening)
    return 0
