"""What `observer doctor` finds: real packages here, and real servers on loopback that say what Ollama may say."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from observer.doctor import Finding, examine, find_extras, find_llama_cpp, find_ollama, find_unfit


@contextmanager
def answering(body: str) -> Iterator[str]:
    """A server that answers everything with `body`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ollama_that_says(body: str, monkeypatch: pytest.MonkeyPatch) -> Finding:
    with answering(body) as host:
        monkeypatch.setenv("OLLAMA_HOST", host)
        return find_ollama()


@pytest.mark.parametrize(
    ("body", "found", "mend"),
    [
        ('{"version": "0.32.15"}', "0.32.15 at ", ""),
        ('{"version": "0.32.15-rc1"}', "0.32.15-rc1 at ", ""),
        ('{"version": "0.12.3"}', "0.12.3 at ", "tells no probabilities before 0.12.11; update it: curl"),
        ('{"version": "0.6.5"}', "0.6.5 at ", "Qwen3 needs 0.6.6; update it: curl"),
        ('{"ok": true}', "no Ollama answers at ", "check OLLAMA_HOST"),
        ("<html>", "no Ollama answers at ", "check OLLAMA_HOST"),
        ("[]", "no Ollama answers at ", "check OLLAMA_HOST"),
    ],
)
def test_ollama_is_asked_for_its_version(body: str, found: str, mend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = ollama_that_says(body, monkeypatch)
    assert finding.found.startswith(found) and finding.mend.startswith(mend) and bool(finding.mend) == bool(mend)
    assert not finding.is_fatal


def test_no_server_is_a_note_that_tells_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering("") as host:
        pass
    monkeypatch.setenv("OLLAMA_HOST", host)
    finding = find_ollama()
    assert finding.found == f"no server answers at http://{host}" and "ollama serve" in finding.mend


def test_the_build_of_llama_cpp_is_told() -> None:
    finding = find_llama_cpp()
    assert finding.found.startswith("ggml ") and "cpu" in finding.found and not finding.is_fatal


def test_what_is_installed_here_fits_what_is_asked_for() -> None:
    assert find_unfit() == []


def test_every_extra_has_a_line_that_installs_it() -> None:
    findings = {finding.name: finding for finding in find_extras()}
    assert "extra label" in findings and "extra dev" not in findings
    for name, finding in findings.items():
        assert not finding.mend or name.removeprefix("extra ") in finding.mend


def test_nothing_is_told_twice() -> None:
    names = [finding.name for finding in examine()]
    assert len(names) == len(set(names))
