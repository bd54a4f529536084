"""A patient client for the part of Ollama's HTTP API that makes a model of our files and asks it.

API: https://github.com/ollama/ollama/blob/main/docs/api.md. Faults that may pass (no connection, a cut answer, 5xx)
are tried again with growing pauses; all others are one line at once. Every request has a timeout.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from observer.errors import ObserverError
from observer.files import explain_os_error

BLOCK_BYTES = 1 << 20
TOP_LOGPROBS = 20
"""Alternatives asked for at each place: the most that Ollama and vLLM tell."""
T = TypeVar("T")
Progress = Callable[[int, int], None]
Messages = list[dict[str, str]]


class NoServer(ObserverError):
    """Nothing answers at the address."""


class _Passing(Exception):
    """A fault that another try may not meet."""


@dataclass(frozen=True)
class Endpoint:
    """Where the server is, and how patient to be. `work_timeout_s` is for what it computes: hashes, loads, answers."""

    url: str
    timeout_s: float = 30.0
    work_timeout_s: float = 600.0
    max_retries: int = 4
    backoff_s: float = 0.5


@dataclass(frozen=True)
class Answer:
    """`is_stopped` when the server ended it for the model; `logprobs` as the API has them, none before 0.12.11."""

    text: str
    is_stopped: bool
    logprobs: list[dict[str, Any]]


class OllamaClient:
    """Talks to one server; `say` gets a line for every pause and status."""

    def __init__(self, endpoint: Endpoint, say: Callable[[str], None] = lambda _line: None) -> None:
        self.endpoint, self._say = endpoint, say
        parts = urlsplit(endpoint.url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ObserverError(f"{endpoint.url}: no address; http://HOST:PORT is expected")
        self._secure, self._host, self._port, self._path = parts.scheme == "https", parts.hostname, port, parts.path

    def version(self) -> str:
        """Raises NoServer when nobody answers."""
        try:
            answer = self._json("GET", "/api/version")
        except _Passing as error:
            raise NoServer(f"{self.endpoint.url}: no Ollama server answers ({error})") from None
        if not isinstance(answer.get("version"), str):
            raise NoServer(f"{self.endpoint.url}: what answers is no Ollama server; check --host")
        return answer["version"]

    def push_blob(self, path: Path, digest: str, progress: Progress) -> bool:
        """Upload a file unless the server has it; return whether it was sent. `digest` is `sha256:…` of the file.

        A cut upload is asked for again: the server keeps whole blobs only. Raises ObserverError.
        """
        return self._patiently(f"upload of {path.name}", lambda: self._push_once(path, digest, progress))

    def create(self, request: dict[str, Any]) -> None:
        """Create a model; it replaces one of the same name. Raises ObserverError with the server's words."""
        self._patiently(f"creating {request['model']}", lambda: self._create_once(request))

    def delete(self, model: str) -> None:
        """Remove a model; its weights go with the last model that has them."""
        self._patiently(f"deleting {model}", lambda: self._json("DELETE", "/api/delete", {"model": model}))

    def render(self, model: str, messages: Messages) -> str | None:
        """The prompt that the model would get; None from a server before 0.11.5, which cannot tell."""
        answer = self._chat(model, messages, {"_debug_render_only": True, "options": {"num_predict": 1}})
        return (answer.get("_debug_info") or {}).get("rendered_template")

    def answer(self, model: str, messages: Messages) -> Answer:
        """What the model answers with its own parameters."""
        reply = self._chat(model, messages, {"logprobs": True, "top_logprobs": TOP_LOGPROBS})
        message = reply.get("message") or {}
        if message.get("thinking"):
            raise ObserverError(f"{model}: answers with a thinking block; the base's template is in use, not ours")
        return Answer(str(message.get("content") or ""), is_stopped(reply), reply.get("logprobs") or [])

    def _chat(self, model: str, messages: Messages, more: dict[str, Any]) -> dict[str, Any]:
        body = {"model": model, "messages": messages, "stream": False, "shift": False, **more}
        timeout_s = self.endpoint.work_timeout_s
        return self._patiently(f"asking {model}", lambda: self._json("POST", "/api/chat", body, timeout_s))

    def _push_once(self, path: Path, digest: str, progress: Progress) -> bool:
        with self._exchange("HEAD", f"/api/blobs/{digest}", None, {}, self.endpoint.timeout_s) as response:
            if response.status == 200:
                return False
            if response.status != 404:
                self._check(response)
        size = _size_of(path)
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        blocks = _blocks(path, size, progress)
        with self._exchange("POST", f"/api/blobs/{digest}", blocks, headers, self.endpoint.work_timeout_s) as response:
            self._check(response)
        return True

    def _create_once(self, request: dict[str, Any]) -> None:
        body, headers = json.dumps(request).encode(), {"Content-Type": "application/json"}
        with self._exchange("POST", "/api/create", body, headers, self.endpoint.work_timeout_s) as response:
            self._check(response)
            status = ""
            for line in _lines(response):
                if "error" in line:
                    raise ObserverError(f"{self.endpoint.url}: {request['model']} was not created: {error_words(line)}")
                if line.get("status") != status:
                    status = str(line.get("status", ""))
                    self._say(f"{request['model']}: {status}")
            if status != "success":
                raise _Passing("the answer ended before success")

    def _json(self, method: str, path: str, body: Any = None, timeout_s: float | None = None) -> dict[str, Any]:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        with self._exchange(method, path, data, headers, timeout_s or self.endpoint.timeout_s) as response:
            self._check(response)
            answer = next(_lines(response), {})
            if "error" in answer:
                raise ObserverError(f"{self.endpoint.url}: {error_words(answer)}")
            return answer

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: Any, headers: dict[str, str], timeout_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        """Send one request and yield its answer. Faults of the connection become _Passing."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout_s)
        try:
            try:
                connection.request(method, self._path.rstrip("/") + path, body, headers)
            except (BrokenPipeError, ConnectionResetError) as error:
                yield _early_answer(connection, error)  # refused in mid-upload: a full disk, say
            else:
                yield connection.getresponse()
        except TimeoutError:
            raise _Passing(f"no answer within {timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(str(error) or type(error).__name__) from None
        finally:
            connection.close()

    def _check(self, response: http.client.HTTPResponse) -> None:
        if response.status < 300:
            return
        told = error_words(next(_lines(response), {})) or response.reason
        what = f"{response.status}, {told}"
        if response.status >= 500 or response.status in (408, 429) or "digest mismatch" in what:
            raise _Passing(what)
        raise ObserverError(f"{self.endpoint.url}: {what}")

    def _patiently(self, what: str, work: Callable[[], T]) -> T:
        why = ""
        for attempt in range(self.endpoint.max_retries + 1):
            try:
                return work()
            except _Passing as error:
                why = str(error)
            if attempt < self.endpoint.max_retries:
                pause_s = self.endpoint.backoff_s * 2**attempt
                self._say(f"{what}: {why}; trying again in {pause_s:g} s")
                time.sleep(pause_s)
        tries = self.endpoint.max_retries + 1
        raise ObserverError(f"{self.endpoint.url}: {what} failed {tries} times, last: {why}; {_fix(why)}")


def is_stopped(reply: dict[str, Any]) -> bool:
    """Whether an answer was ended for the model: by its limit, or, more than 30 equal tokens in a row, as not done."""
    return reply.get("done_reason") == "length" or reply.get("done") is False


def error_words(reply: Any) -> str:
    """What an error says: the innermost `message`, for Ollama passes on the JSON of its runner as text."""
    if isinstance(reply, dict):
        return error_words(reply.get("message") or reply.get("error") or "")
    text = str(reply).strip()
    with contextlib.suppress(ValueError):
        inner = json.loads(text[text.index("{") : text.rindex("}") + 1])
        return error_words(inner) or text[:300]
    return text[:300]


def _fix(why: str) -> str:
    if "digest mismatch" in why:
        return "the file changes while it is sent, or something in between alters it"
    if "no space left" in why:
        return "free some space on the server and run the same command again"
    return "see the server's log, and run the same command again"


def _early_answer(connection: http.client.HTTPConnection, error: OSError) -> http.client.HTTPResponse:
    try:
        return connection.getresponse()
    except (OSError, http.client.HTTPException):
        raise error from None


def _lines(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer, one a line."""
    for line in response:
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError:
            value = {"error": line.decode("utf-8", "replace").strip()[:200]} if response.status >= 300 else {}
            if not value:
                raise _Passing("the answer is not JSON") from None
        if isinstance(value, dict):
            yield value


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ObserverError(explain_os_error(error, path)) from error


def _blocks(path: Path, size: int, progress: Progress) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block
            done += len(block)
            progress(done, size)
