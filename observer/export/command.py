"""`observer export`: the parser, and what the command prints and writes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from observer.paths import TRAIN_JSONL

if TYPE_CHECKING:
    from observer.export.export import ExportPlan

DEFAULT_TYPES = ("f16", "q8_0", "q4_k_m")


def add_export_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="write verified GGUF files of a run, an adapter, a checkpoint or a model",
        description="Convert, quantize and verify. An adapter is merged into its base first. Files that are there "
        "already are not made again, so the same command resumes. Writes NAME-TYPE.gguf, three Modelfiles for each, "
        "export.json and export.md.",
    )
    add = export.add_argument
    add("source", type=Path, metavar="SOURCE", help="outputs/RUN, an adapter, a checkpoint, or a Hugging Face folder")
    add("--out", type=Path, required=True, metavar="DIR", help="where the files are written")
    add(
        "--types", type=_types, default=DEFAULT_TYPES, metavar="TYPE,…",
        help=f"GGUF types, each a file (default: {','.join(DEFAULT_TYPES)})",
    )  # fmt: skip
    add("--base", type=Path, metavar="FOLDER", help="the model an adapter was trained on (default: what it names)")
    add(
        "--imatrix", default="auto", metavar="FILE.gguf",
        help="importance matrix for types below 5 bits; auto: from --imatrix-rows; none: without (default: auto)",
    )  # fmt: skip
    add(
        "--imatrix-rows", type=Path, metavar="FILE.jsonl",
        help=f"training rows to compute it from (default: the run's own, else {TRAIN_JSONL})",
    )  # fmt: skip
    add(
        "--tensor-type", type=_override, action="append", default=[], metavar="PATTERN=TYPE",
        help="another type for the tensors whose name matches, such as ffn_down=q6_k; may be repeated",
    )  # fmt: skip
    add("--keep-merged", action="store_true", help="keep the merged model of an adapter in DIR")
    export.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export and print the paths; raises ObserverError when a file does not pass its checks."""
    from observer.config import Config, ModelConfig
    from observer.export.export import check_disk, check_plan, export
    from observer.export.export_report import EXPORT_MD, render_report
    from observer.export.source import run_of
    from observer.files import write_text
    from observer.ollama.modelfile import modelfiles_beside, write_all
    from observer.runs.lock import held_folder
    from observer.runs.manifest import Manifest

    plan, report = plan_of(args), args.out / EXPORT_MD
    check_plan(plan)
    with held_folder(plan.out, "name another one with --out"):
        check_disk(plan, "ask for fewer types, or name another folder with --out")
        manifest = Manifest(plan.out / "export.json")
        export(plan, manifest)
        write_text(report, render_report(plan, manifest, shlex.join(["observer", *sys.argv[1:]])))
        run_here = run_of(args.source)
        base = str(plan.source.base or plan.source.model)
        config = run_here.config if run_here else Config(model=ModelConfig(base=base))
        modelfiles = [modelfiles_beside(plan.path(file), config, file.name) for file in plan.files]
        for texts in modelfiles:
            write_all(texts)
    print(*map(plan.path, plan.files), *(next(iter(texts)) for texts in modelfiles), report, sep="\n")
    return 0


def plan_of(args: argparse.Namespace) -> ExportPlan:
    """What the command is to write. Raises ObserverError for a source that cannot be exported."""
    from observer.export.export import ExportPlan, files_of
    from observer.export.quantize.imatrix import Calibration
    from observer.export.source import find_source, rows_for_imatrix

    source, overrides = find_source(args.source, args.base), dict(args.tensor_type)
    calibration, imatrix = None, Path(args.imatrix)
    if args.imatrix == "none":
        imatrix = None
    elif args.imatrix == "auto":
        calibration = Calibration((args.imatrix_rows,)) if args.imatrix_rows else rows_for_imatrix(args.source)
        imatrix = args.out / f"{source.name}-imatrix.gguf" if calibration else None
    files = files_of(args.types, overrides, has_imatrix=imatrix is not None)
    return ExportPlan(source, args.out, files, imatrix, calibration, overrides, keeps_merged=args.keep_merged)


def _types(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("types such as f16,q8_0,q4_k_m are expected")
    return names


def _override(text: str) -> tuple[str, str]:
    pattern, equals, name = text.rpartition("=")
    if not (pattern and equals and name):
        raise argparse.ArgumentTypeError(f"PATTERN=TYPE is expected, such as ffn_down=q6_k; found {text!r}")
    return pattern, name
