"""The `observer` command. Only the parser lives here; what a subcommand needs is imported when it is called."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from observer import __version__
from observer.console.run import run_cli
from observer.data.command import add_data_command
from observer.demo.command import add_demo_command
from observer.export.command import add_export_command
from observer.export.package_command import add_package_command
from observer.export.push_command import add_push_command
from observer.labeling.command import add_label_command
from observer.mcp_server.command import add_mcp_command
from observer.memory.command import add_memory_command
from observer.observe.command import add_observe_commands
from observer.runs.clean import add_clean_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failed. Wrong usage leaves through SystemExit 2, as argparse does."""
    parser = build_parser()
    args = parser.parse_args(argv)
    return run_cli(lambda: args.run(args), debug=args.debug)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="observer",
        description="Grade conversations for long-term memory and extract what they state.",
        epilog="Training is a script of its own: python train_sft.py --config configs/nano.yaml",
    )
    parser.add_argument("--version", action="version", version=f"observer {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_observe_commands(commands)
    add_memory_command(commands)
    add_mcp_command(commands)
    add_demo_command(commands)
    add_data_command(commands)
    add_label_command(commands)
    add_export_command(commands)
    add_package_command(commands)
    add_push_command(commands)
    add_clean_command(commands)
    doctor = commands.add_parser("doctor", help="tell what this machine has, and how to get what it lacks")
    doctor.set_defaults(run=_doctor)
    return parser


def _doctor(_: argparse.Namespace) -> int:
    from observer.doctor import examine, render

    findings = examine()
    print(render(findings))
    return int(any(finding.is_fatal for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
