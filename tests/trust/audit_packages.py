"""Ask a database of known vulnerabilities about every package in constraints.txt.

    python -m tests.trust.audit_packages

pip-audit asks; `--service osv` asks another database. Exit codes: 0 no package has a known vulnerability, 1 some have
(each is named, with the version that mends it), 3 not all could be asked about, such as without a network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observer.console.run import run_cli
from observer.errors import ObserverError
from tests.trust.result import TRUST_FOLDER, save_result

LOCKED = Path("constraints.txt")
NOT_AUDITED = 3


@dataclass(frozen=True)
class Audit:
    """Of the locked packages: those asked about, those nobody could tell about, and `name version: id, mended in`."""

    n_asked: int
    untold: list[str]
    vulnerable: list[str]
    why: str = ""

    @property
    def code(self) -> int:
        return 1 if self.vulnerable else NOT_AUDITED if self.untold or not self.n_asked else 0

    @property
    def summary(self) -> str:
        if not self.n_asked:
            return f"not audited: {self.why or 'the database knows none of the packages'}"
        found = f"{len(self.vulnerable)} known vulnerabilities in {self.n_asked} packages"
        return found + (f"; {len(self.untold)} more not audited" if self.untold else "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locked", type=Path, default=LOCKED, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=TRUST_FOLDER, metavar="DIR", help="default: %(default)s")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("pip_audit") is None:
        raise ObserverError("pip-audit is not installed: pip install -c constraints.txt -e '.[trust]'")
    if not args.locked.is_file():
        raise ObserverError(f"{args.locked}: no such file; run it from the project's folder")
    start = time.monotonic()
    audit = ask(args.locked, args.service)
    save_result(
        "audit",
        command="python -m tests.trust.audit_packages"
        + (f" --service {args.service}" if args.service != "pypi" else ""),
        seconds=time.monotonic() - start,
        passed=audit.code == 0,
        summary=audit.summary,
        details={"vulnerable": audit.vulnerable, "not_audited": audit.untold, "why": audit.why},
        folder=args.out,
    )
    print("\n".join([*audit.vulnerable, audit.summary]))
    return audit.code


def ask(locked: Path, service: str) -> Audit:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(locked), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--vulnerability-service", service]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return Audit(0, [], [], why_silent(done.stderr))
    return audit_of(told)


def audit_of(dependencies: Sequence[Mapping[str, Any]]) -> Audit:
    """What pip-audit's JSON says (https://github.com/pypa/pip-audit: `--format json`)."""
    asked = [package for package in dependencies if "skip_reason" not in package]
    vulnerable = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'none'}"
        for package in asked
        for hole in package["vulns"]
    ]
    skipped = [package for package in dependencies if "skip_reason" in package]
    why = "" if asked or not skipped else f"{skipped[0]['skip_reason']}; so with all {len(skipped)}"
    return Audit(len(asked), [package["name"] for package in skipped], vulnerable, why[:300])


def why_silent(complaint: str) -> str:
    """One line of what pip-audit says when it has nothing to tell."""
    lines = [line for line in complaint.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else "pip-audit says nothing"
    is_network = any(word in complaint for word in ("ConnectionError", "ConnectTimeout", "NameResolution", "Timeout"))
    return f"no network ({last})" if is_network else last


if __name__ == "__main__":
    sys.exit(run_cli(main))
