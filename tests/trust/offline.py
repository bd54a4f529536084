"""Runs the whole pipeline, from rows to evaluated GGUF files, with the network taken away.

The training runs in a network of its own that holds nothing but itself (Linux: `unshare --net`, as root or in a user
namespace); whatever it tries to look up or connect to is counted as well.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from observer.config import load_config
from observer.paths import PROJECT_ROOT

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
