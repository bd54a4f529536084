"""Run the whole pipeline, from rows to evaluated GGUF files, with the network taken away.

    python -m tests.trust.offline
    python -m tests.trust.offline --full            all steps of the config, not a few

The training runs in a network of its own that holds nothing but itself (Linux: `unshare --net`, as root or in a user
namespace); whatever it tries to look up or connect to is counted as well. Passed is a run that ends with its reports
and tried nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from observer.config import load_config
from observer.console.durations import format_duration
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT
from tests.trust.result import TRUST_FOLDER, save_result

CONFIG = Path("configs/nano.yaml")
SHORT = ("training.max_steps=8", "training.eval_steps=4", "evaluation.limit=4", "export.quantizations=[f16,q4_k_m]")
_INSIDE = """
import json, socket, sys
reached = []
sys.addaudithook(lambda event, args: reached.append(f"{event} {args[-1]}")
                 if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") else None)
try:
    socket.create_connection(("192.0.2.1", 80), timeout=3).close()  # an address of nobody (RFC 5737)
    blocked = ""
except OSError as error:
    blocked = str(error)
reached.clear()
import train_sft
from observer.console.run import run_cli
code = run_cli(lambda: train_sft.main(sys.argv[2:]))
open(sys.argv[1], "w").write(json.dumps({"code": code, "blocked": blocked, "reached": reached}))
"""


@dataclass(frozen=True)
class Offline:
    """How the run ended, the system's words about an address outside, and what the run tried to reach."""

    code: int
    blocked: str
    reached: list[str]
    output: str
    n_reports: int

    @property
    def passed(self) -> bool:
        return self.code == 0 and "unreachable" in self.blocked.lower() and not self.reached and self.n_reports > 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="YAML", help="default: %(default)s")
    parser.add_argument("--full", action="store_true", help="all steps and rows; the default takes 8 steps, 4 rows")
    parser.add_argument("--out", type=Path, default=TRUST_FOLDER, metavar="DIR", help="default: %(default)s")
    args = parser.parse_args(argv)
    alone = alone_command()
    if alone is None:
        raise ObserverError("no network can be taken away here: `unshare --net` is not there or not allowed")
    start = time.monotonic()
    result = run_offline(args.config, () if args.full else SHORT, alone)
    seconds = time.monotonic() - start
    how = "ended with its reports" if result.code == 0 else f"failed with exit code {result.code}"
    summary = (
        f"without a network the pipeline {how} after {format_duration(seconds)} "
        f"and tried to reach {len(result.reached)} addresses"
    )
    command = "python -m tests.trust.offline" + (f" --config {args.config}" if args.config != CONFIG else "")
    path = save_result(
        "network",
        command=command + (" --full" if args.full else ""),
        seconds=seconds,
        passed=result.passed,
        summary=summary,
        details={"reached": result.reached, "an address outside": result.blocked, "reports": result.n_reports},
        folder=args.out,
    )
    print(f"{result.output[-2000:] if result.code else ''}{summary}\nwrote {path}")
    return 0 if result.passed else 1


def alone_command() -> list[str] | None:
    """What starts a program in a network of its own; None where that is not allowed."""
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return None


def run_offline(config: Path, overrides: Sequence[str], alone: Sequence[str]) -> Offline:
    """Train in a folder that goes afterwards. Nothing but the block keeps it from the network."""
    switched_by_us = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CI"}
    environment = {name: value for name, value in os.environ.items() if name not in switched_by_us}
    with tempfile.TemporaryDirectory(prefix="offline-") as folder:
        told = Path(folder, "told.json")
        arguments = ["--config", str(config), "--set", f"run.output_dir={folder}/outputs"]
        arguments += [part for override in overrides for part in ("--set", override)]
        command = [*alone, sys.executable, "-c", _INSIDE, str(told), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment, check=False)
        found = (
            json.loads(told.read_text()) if told.exists() else {"code": done.returncode, "blocked": "", "reached": []}
        )
        name = load_config(config, [f"run.output_dir={folder}/outputs"]).run.name
        reports = list(Path(folder, "outputs", name, "reports").glob("*.json"))
        return Offline(**found, output=done.stdout + done.stderr, n_reports=len(reports))


if __name__ == "__main__":
    sys.exit(run_cli(main))
