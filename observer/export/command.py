"""`observer export`: the parser, and what the command prints and writes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from observer.paths import TRAIN_JSONL

DEFAULT_TYPES = ("f16", "q8_0", "q4_k_m")


def add_export_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="write verified GGUF files of a run, an adapter, a checkpoint or a model",
        description="Convert, quantize and verify. An adapter is merged into its base first. What is there already is "
        "not made again, and a run that was cut goes on. Writes NAME-TYPE.gguf, export.json and export.md.",
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
        help="importance matrix for types below 5 bits; auto: computed from --imatrix-rows; none (default: auto)",
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
    """Print the plan, export, print the report; raises ObserverError when a file does not pass its checks."""
    from observer.export.export import ExportPlan, check_plan, export, planned_bytes
    from observer.export.export_report import EXPORT_MD, render_report, warnings
    from observer.export.source import find_source, training_rows
    from observer.files import write_text

    source = find_source(args.source, args.base)
    overrides = dict(args.tensor_type)
    given = Path(args.imatrix) if args.imatrix not in ("auto", "none") else None
    rows = args.imatrix_rows or (training_rows(args.source) if args.imatrix == "auto" else None)
    plan = ExportPlan(source, args.out, args.types, given, rows, overrides, args.keep_merged)
    check_plan(plan)
    for what, size_bytes in planned_bytes(plan).items():
        _say(f"to write: {what}, at most {size_bytes / 1e6:,.0f} MB")
    manifest = export(plan)
    report = args.out / EXPORT_MD
    write_text(report, render_report(plan, manifest, command_line(args)))
    for line in warnings(plan, manifest):
        _say(f"warning: {line}")
    for file_type in plan.types:
        print(plan.path(file_type))
    print(report)
    return 0


def command_line(args: argparse.Namespace) -> str:
    """The command that makes the same files; what has its default is left out."""
    words = ["observer", "export", str(args.source), "--out", str(args.out)]
    if args.types != DEFAULT_TYPES:
        words += ["--types", ",".join(args.types)]
    if args.base:
        words += ["--base", str(args.base)]
    if args.imatrix != "auto":
        words += ["--imatrix", args.imatrix]
    if args.imatrix_rows:
        words += ["--imatrix-rows", str(args.imatrix_rows)]
    for pattern, name in args.tensor_type:
        words += ["--tensor-type", f"{pattern}={name}"]
    return shlex.join(words + ["--keep-merged"] * args.keep_merged)


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


def _say(line: str) -> None:
    print(f"export: {line}", file=sys.stderr, flush=True)
