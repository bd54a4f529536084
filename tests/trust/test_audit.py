"""pip-audit knows no vulnerability of the locked packages. `make audit` is the same command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from observer.paths import PROJECT_ROOT

AUDIT = "pip_audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt"
"""--strict: a package that nobody could be asked about, such as without a network, is not passed either."""


def fault() -> str:
    """What pip-audit found or lacked; empty when every package is asked about and has no known vulnerability."""
    done = subprocess.run([sys.executable, "-m", *AUDIT.split()], cwd=PROJECT_ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    complaint = (done.stderr.strip() or "pip-audit says nothing").splitlines()[-1]
    return done.stdout or f"not audited: {complaint}"


def test_the_command_is_that_of_make_audit() -> None:
    assert AUDIT in (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")


def test_without_a_network_nothing_is_audited_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip_audit")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a closed port
    said = fault()
    assert said.startswith("not audited: ") and "Max retries exceeded" in said and "\n" not in said


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_no_locked_package_has_a_known_vulnerability() -> None:
    assert fault() == ""
