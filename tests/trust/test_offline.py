"""The pipeline, from rows to evaluated GGUF files, with the network taken away.

The training runs in a network of its own that holds nothing but itself (Linux: `unshare --net`, as root or in a user
namespace); whatever it tries to look up or connect to is counted as well.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from observer.config import load_config
from observer.paths import PROJECT_ROOT
from tests.support.tiny_runs import write_tiny_run
from tests.trust.conftest import Night

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
open(sys.argv[1], "w").write(json.dumps({"blocked": blocked, "reached": reached}))
sys.exit(code)
"""


def alone_command() -> list[str]:
    """What starts a program in a network of its own; empty where that is not allowed."""
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return []


def train_and_reach_nobody(config: Path, folder: Path, *overrides: str) -> dict[str, object]:
    """What there was to see. Nothing but the block keeps the run from the network."""
    switched_by_us = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CI"}
    environment = {name: value for name, value in os.environ.items() if name not in switched_by_us}
    told, sets = folder / "told.json", [f"run.output_dir={folder / 'outputs'}", *overrides]
    command = [*alone_command(), sys.executable, "-c", _INSIDE, str(told), "--config", str(config)]
    command += [part for override in sets for part in ("--set", override)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(told.read_text())
    reports = list((load_config(config, sets).paths.root / "reports").glob("*.json"))
    assert found["reached"] == [] and reports
    return {"reached": 0, "reports": len(reports), "an_address_outside": found["blocked"]}


def is_blocked(found: dict[str, object]) -> bool:
    return "unreachable" in str(found["an_address_outside"]).lower()


@pytest.mark.slow
def test_a_tiny_run_needs_no_network_and_looks_up_no_address(tmp_path: Path, tiny_model: Path) -> None:
    """TRL reports every trainer to huggingface.co unless it is told not to."""
    found = train_and_reach_nobody(write_tiny_run(tmp_path, tiny_model), tmp_path)
    if not alone_command():
        pytest.skip("watched, not blocked: `unshare --net` is not there or not allowed")
    assert is_blocked(found)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_pipeline_needs_no_network(night: Night, tmp_path: Path) -> None:
    assert alone_command(), "no network can be taken away here: `unshare --net` is not there or not allowed"
    found = train_and_reach_nobody(Path(night.run_config), tmp_path, *SHORT)
    night.record(**found)
    assert is_blocked(found)
