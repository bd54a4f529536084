"""What pip-audit tells becomes one verdict: sound, with holes, or not asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT
from tests.trust import audit_packages
from tests.trust.audit_packages import NOT_AUDITED, Audit, audit_of, why_silent
from tests.trust.result import load_results

SOUND: dict[str, Any] = {"name": "a", "version": "1.0", "vulns": []}
HOLE: dict[str, Any] = {"id": "CVE-2026-1", "fix_versions": ["1.1", "2.0"], "aliases": [], "description": "x"}
UNKNOWN: dict[str, Any] = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


def test_packages_without_holes_pass() -> None:
    audit = audit_of([SOUND, SOUND | {"name": "b"}])
    assert (audit.code, audit.summary) == (0, "0 known vulnerabilities in 2 packages")


def test_holes_are_named_with_what_mends_them() -> None:
    audit = audit_of([SOUND, {"name": "b", "version": "1.0", "vulns": [HOLE, HOLE | {"fix_versions": []}]}, UNKNOWN])
    assert audit.code == 1
    assert audit.vulnerable == ["b 1.0: CVE-2026-1, mended in 1.1, 2.0", "b 1.0: CVE-2026-1, mended in none"]
    assert audit.summary == "2 known vulnerabilities in 2 packages; 1 more not audited"


def test_what_nobody_could_be_asked_about_is_not_sound() -> None:
    assert audit_of([SOUND, UNKNOWN]).code == audit_of([UNKNOWN]).code == Audit(0, [], [], "x").code == NOT_AUDITED
    assert audit_of([UNKNOWN]).summary == "not audited: Dependency not found on PyPI; so with all 1"


def test_a_missing_network_is_said_in_one_line() -> None:
    complaint = "Traceback\n  File x\nrequests.exceptions.ConnectionError: Failed to resolve 'api.osv.dev'\n"
    assert why_silent(complaint) == "no network (requests.exceptions.ConnectionError: Failed to resolve 'api.osv.dev')"
    assert why_silent("usage: x\nerror: bad file\n") == "error: bad file"
    assert why_silent("") == "pip-audit says nothing"


def test_the_locked_set_is_given_to_pip_audit_and_the_verdict_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No database answers at a closed port; the name of the lock file is checked before."""
    pytest.importorskip("pip_audit")
    monkeypatch.chdir(PROJECT_ROOT)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    locked = tmp_path / "locked.txt"
    locked.write_text("idna==3.10\n")
    assert audit_packages.main(["--locked", str(locked), "--out", str(tmp_path)]) == NOT_AUDITED
    assert capsys.readouterr().out.startswith("not audited: no network (")
    result = load_results(tmp_path)["audit"]
    assert not result.passed and json.loads((tmp_path / "audit.json").read_text())["summary"] == result.summary
    with pytest.raises(ObserverError, match="no such file"):
        audit_packages.main(["--locked", str(tmp_path / "none.txt"), "--out", str(tmp_path)])
