"""A real HTTP server on loopback that speaks OpenAI's chat API, with faults that a test programs."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from observer.labeling.prompts import INSTRUCTIONS
from observer.prompts import Task


@dataclass(frozen=True)
class Received:
    """One request: its body, its key, when it came, and how often this exchange came for this task (from 1)."""

    body: dict[str, Any]
    key: str
    time_s: float
    count: int

    @property
    def exchange(self) -> str:
        return self.body["messages"][1]["content"]

    @property
    def task(self) -> Task:
        return next(task for task, text in INSTRUCTIONS.items() if text == self.body["messages"][0]["content"])

    @property
    def format(self) -> str:
        return self.body.get("response_format", {}).get("type", "text")


@dataclass(frozen=True)
class Reply:
    """What to send: by default a sound answer. `body` replaces the chat completion, `is_cut` closes half-way."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    delay_s: float = 0.0
    is_cut: bool = False
    finish_reason: str = "stop"
    refusal: str | None = None
    body: str | None = None
    has_usage: bool = True


def sound_answer(task: Task, exchange: str) -> str:
    """What a good model would say: people who write `work at NAME` work there, all else is nothing."""
    name = next(iter(re.findall(r"work at (\w+)", exchange)), None)
    if task == Task.GRADE:
        label = "IMPORTANT" if name else "DISCARD"
        return json.dumps({"reasoning": f"About {name}.", "label": label, "confidence": 0.9})
    if not name:
        return json.dumps({"entities": [], "relationships": []})
    entities = [{"name": "User", "type": "Person", "attributes": None}, {"name": name, "type": "Organization"}]
    relation = {"subject": "User", "predicate": "WORKS_AT", "object": name, "temporal": "ongoing", "when": None}
    return json.dumps({"entities": entities, "relationships": [relation]})


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or stopped waiting, is part of the tests."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer in a thread of its own, until the end of the block."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


def read_json(handler: BaseHTTPRequestHandler) -> dict[str, Any]:
    """The body of a request, or ConnectionError when the client went away in the middle of it."""
    size = int(handler.headers["Content-Length"])
    data = handler.rfile.read(size)
    if len(data) < size:
        raise ConnectionError(f"{len(data)} of {size} bytes came")
    return json.loads(data)


class LabelServer:
    """Answers with `plan(request)`; `received` holds every request in the order it came."""

    def __init__(self, plan: Callable[[Received], Reply]) -> None:
        self.plan, self.received = plan, list[Received]()
        self._lock, self._counts = threading.Lock(), Counter[tuple[str, str]]()
        self._http = QuietServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def take(self, body: dict[str, Any], key: str) -> Received:
        with self._lock:
            identity = (body["messages"][0]["content"], body["messages"][1]["content"])
            self._counts[identity] += 1
            request = Received(body, key, time.monotonic(), self._counts[identity])
            self.received.append(request)
            return request

    @contextmanager
    def running(self) -> Iterator[LabelServer]:
        with self._http.serving():
            yield self


def _handler(server: LabelServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = read_json(self)
            request = server.take(body, self.headers.get("Authorization", "").removeprefix("Bearer "))
            reply = server.plan(request)
            time.sleep(reply.delay_s)
            data = (reply.body if reply.body is not None else _body(request, reply)).encode()
            self._send(reply, data)

        def _send(self, reply: Reply, data: bytes) -> None:
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if reply.is_cut else data)
            self.close_connection = self.close_connection or reply.is_cut

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: pytest shows what matters."""

    return Handler


def _body(request: Received, reply: Reply) -> str:
    if reply.status != 200:
        return json.dumps({"error": {"message": reply.message, "type": "error", "code": None}})
    text = sound_answer(request.task, request.exchange) if reply.text is None else reply.text
    message = {"role": "assistant", "content": text, "refusal": reply.refusal}
    usage = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "test", "choices": [choice]}
    return json.dumps(completion | ({"usage": usage} if reply.has_usage else {}))
