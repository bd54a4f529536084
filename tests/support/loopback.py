"""What the servers of the tests share: an address on loopback, requests and answers in JSON, no word on stderr."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

T = TypeVar("T")


class Asked:
    """One request; its body is read when it is asked for."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self.method, self.path, self.headers = handler.command, handler.path, handler.headers
        self.size, self._stream = int(handler.headers.get("Content-Length", 0)), handler.rfile

    def read(self, size: int | None = None) -> bytes:
        return self._stream.read(self.size if size is None else size)

    def json(self) -> Any:
        """Raises ConnectionError when the client went away in the middle of it."""
        data = self.read()
        if len(data) < self.size:
            raise ConnectionError(f"{len(data)} of {self.size} bytes came")
        return json.loads(data)


@dataclass(frozen=True)
class Sent:
    """`value` goes as JSON unless it is bytes; `is_cut` sends half of it and closes, `is_last` closes after it."""

    value: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    is_cut: bool = False
    is_last: bool = False


class Loopback(ThreadingHTTPServer):
    """Sends what `answer` makes of each request; for None it closes the connection without a word."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[Asked], Sent | None], host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), _Handler)
        self.answer = answer
        self.host = f"{host}:{self.server_port}"
        self.url = f"http://{self.host}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or stopped waiting, is part of the tests."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @contextmanager
    def serving(self, value: T) -> Iterator[T]:
        """Answer in a thread of its own, until the end of the block, which gets `value`."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield value
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Loopback  # type: ignore[assignment]

    def do_POST(self) -> None:
        sent = self.server.answer(Asked(self))
        self.close_connection = self.close_connection or sent is None or sent.is_cut or sent.is_last
        if sent is None:
            return
        data = sent.value if isinstance(sent.value, bytes) else json.dumps(sent.value).encode()
        self.send_response(sent.status)
        for name, text in {
            "Content-Type": "application/json",
            **sent.headers,
            "Content-Length": str(len(data)),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if sent.is_cut else data)

    do_GET = do_HEAD = do_PUT = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: pytest shows what matters."""
