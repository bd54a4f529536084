"""`observer push`: a run's GGUF files, its adapter or merged model and its card, as a model repository of the Hub.

Beside them go the three files that Ollama reads from a repository, so that it renders our prompt from there too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from observer.errors import ObserverError
from observer.hub import CARD, Push, add_push_arguments

if TYPE_CHECKING:
    from observer.runs.finished_run import Run

Weights = Literal["adapter", "merged", "none"]


def add_push_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    push = commands.add_parser(
        "push",
        help="put a run on the Hugging Face Hub, from where Ollama can run it",
        description="Send a run's GGUF files with their Modelfiles and card to a model repository, its adapter or "
        "merged model, and the files template, system and params, which Ollama reads there: afterwards `ollama run "
        "hf.co/USER/NAME:Q4_K_M` renders our prompt. The plan is shown first. The token is HF_TOKEN, or that of "
        "`hf auth login`. A push that was cut is resumed by the same command.",
    )
    push.add_argument("run_folder", type=Path, metavar="RUN", help="such as outputs/nano")
    push.add_argument("--weights", choices=["adapter", "merged", "none"], default="adapter", help="what goes beside "
        "the GGUF files, in a folder of its name (default: adapter)")  # fmt: skip
    add_push_arguments(push)
    push.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from observer.hub import run_push
    from observer.runs.finished_run import read_run

    found = read_run(args.run_folder)
    url = run_push(plan_push(found, args.repo, args.weights, is_public=args.public), args.yes)
    print(url)
    shipped = found.config.export.quantizations[-1]
    if found.paths.gguf(shipped).is_file():
        print(f"ollama run hf.co/{args.repo}:{shipped.upper()}    # a message ends with the line GRADE: or EXTRACT:")
    return 0


def plan_push(run: Run, repo: str, weights: Weights = "adapter", *, is_public: bool = False) -> Push:
    """Raises ObserverError for a run without GGUF files, a card or the weights that are asked for."""
    from observer.ollama.modelfile import hub_files

    folder = run.paths.model_card.parent
    ggufs = sorted(folder.glob(f"{run.paths.name}-*.gguf"))
    if not ggufs:
        raise ObserverError(f"{folder}: no GGUF file is here; export the run first")
    files = {path.name: path for path in [*ggufs, *sorted(folder.glob("Modelfile-*")), run.paths.model_card]}
    if not run.paths.model_card.is_file():
        raise ObserverError(
            f"{run.paths.model_card}: no such card; training writes it at its end, the same command again"
        )
    if weights != "none":
        source = run.paths.adapter if weights == "adapter" else run.paths.merged
        parts = [path for path in sorted(source.glob("*")) if path.is_file() and path.name != CARD]  # PEFT's is a blank
        if not any(path.suffix == ".safetensors" for path in parts):
            raise ObserverError(f"{source}: no weights are here; choose another --weights, or none")
        files |= {f"{weights}/{path.name}": path for path in parts}
    return Push(repo, "model", is_public, files, hub_files(run.config.export))
