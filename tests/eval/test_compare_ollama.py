"""Models of an Ollama server compared zero-shot and few-shot: the same instructions, thinking off, asked once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import compare
from observer.console.run import run_cli
from observer.files import write_jsonl
from observer.prompts import CUES, SYSTEM_PROMPT, Task
from tests.support.loopback import Asked, Loopback, Sent
from tests.support.tiny_runs import split_rows

EMPTY = '{"entities":[],"relationships":[]}'


class Server:
    """Knows two models. One labels all STORE and extracts nothing; the other knows that all greetings are DISCARD."""

    def __init__(self) -> None:
        self.digests = {"base:0.6b": "sha256:1", "tuned:latest": "sha256:2"}
        self.asked: list[dict[str, Any]] = []
        self.http = Loopback(self.answer)

    def answer(self, asked: Asked) -> Sent:
        if asked.method == "POST":
            return Sent(self.chat(asked.json()))
        models = [
            {"name": name, "model": name, "digest": digest, "details": {"quantization_level": "Q8_0"}}
            for name, digest in self.digests.items()
        ]
        return Sent({"models": models} if asked.path == "/api/tags" else {"version": "0.32.15"})

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        is_grading = body["messages"][-1]["content"].endswith(CUES[Task.GRADE])
        content = ("DISCARD" if body["model"] == "tuned" else "STORE") if is_grading else EMPTY
        return {"message": {"role": "assistant", "content": content}, "done": True, "done_reason": "stop"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("OLLAMA_HOST", server.http.host)
    with server.http.serving(server):
        yield server


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Eight greetings and as many stated places, each a family of its own, and other rows to draw examples from."""
    rows = [row | {"family": f"family-{n}"} for n, row in enumerate(split_rows(24))]
    write_jsonl(tmp_path / "val.jsonl", rows[:16])
    write_jsonl(tmp_path / "train.jsonl", rows[16:])
    files = ["--split", str(tmp_path / "val.jsonl"), "--train", str(tmp_path / "train.jsonl"), "--out", str(tmp_path)]
    return ["ollama:tuned", "ollama:base:0.6b", "ollama:base:0.6b+few2", *files]


def test_a_tuned_model_is_compared_with_its_base_zero_shot_and_few_shot(
    server: Server, arguments: list[str], tmp_path: Path, capsys
) -> None:
    assert compare.main(arguments) == 0
    models = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert set(models) == {"ollama:base:0.6b", "ollama:base:0.6b+few2"}
    page = next(tmp_path.glob("*.md")).read_text(encoding="utf-8")
    assert "Ollama 0.32.15, Q8_0, digest 1)" in page and "Ollama 0.32.15, Q8_0, digest 2)" in page
    for tests in models.values():
        assert tests["accuracy"] == {"verdict": "worse", "difference": -1, "p": pytest.approx(2 / 2**8 * 6)}
        assert tests["triple_f1_temporal"]["verdict"] == "no evidence"

    assert all(body["think"] is False and body["options"]["temperature"] == 0 for body in server.asked)
    assert {body["messages"][0]["content"] for body in server.asked} == {SYSTEM_PROMPT}
    roles = {tuple(message["role"] for message in body["messages"]) for body in server.asked}
    zero_shot, pair = ("system", "user"), ("user", "assistant")
    assert roles == {zero_shot, ("system", *pair, *pair, "user")}
    train = {row["prompt"][-1]["content"]: row["completion"][0]["content"] for row in _rows(tmp_path / "train.jsonl")}
    for body in server.asked:
        shown = body["messages"][1:-1]
        for question, answer in zip(shown[::2], shown[1::2], strict=True):
            assert train[question["content"]] == answer["content"]


def test_a_model_is_asked_again_only_when_its_digest_changes(server: Server, arguments: list[str], capsys) -> None:
    compare.main(arguments)
    n_asked = len(server.asked)
    compare.main(arguments)
    assert len(server.asked) == n_asked
    server.digests["tuned:latest"] = "sha256:3"
    compare.main(arguments)
    assert {body["model"] for body in server.asked[n_asked:]} == {"tuned"}
    assert capsys.readouterr().err.count("answered before") == 3 + 2


def test_a_model_that_the_server_lacks_is_one_line(server: Server, arguments: list[str], capsys) -> None:
    assert run_cli(lambda: compare.main(["ollama:tuned", "ollama:other", *arguments[3:]])) == 1
    error = capsys.readouterr().err
    assert "other" in error
    assert len(error.splitlines()) == 1
    assert server.asked == []


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
