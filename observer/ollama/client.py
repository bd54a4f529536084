"""The one client of Ollama's HTTP API: patience, timeouts, and faults in one line.

API: https://github.com/ollama/ollama/blob/main/docs/api.md. Retried are faults that may pass: a lost connection, a
cut answer, 5xx, 408 and 429. A server that stays silent for the whole timeout is not asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from observer.errors import ObserverError
from observer.files import explain_os_error, parse_json
from observer.observation import Progress
from observer.ollama.address import full_name, ollama_url

if TYPE_CHECKING:
    import httpx

BLOCK_BYTES = 1 << 20
_PASSING = frozenset({408, 429})
_TOO_LONG = ("context length", "context size", "context window", "too long")
T = TypeVar("T")


class NoServer(ObserverError):
    """Nothing answers at the address."""


class TooLong(Exception):
    """The prompt does not fit the model's context."""


class _Passing(Exception):
    """A fault that another try may not meet; `is_down` when nothing was there to connect to."""

    def __init__(self, why: str, *, is_down: bool = False) -> None:
        super().__init__(why)
        self.is_down = is_down


@dataclass(frozen=True)
class Patience:
    """How long to wait for one answer, and how often to ask again."""

    timeout_s: float = 120.0
    max_retries: int = 3
    backoff_s: float = 0.5


class OllamaClient:
    """`host` as in OLLAMA_HOST, which is the default; nothing is sent before the first call.

    One thread runs an event loop for all callers, who may also bring work of their own to it by `portal`. `say` gets a
    line for every pause and status.
    """

    def __init__(
        self,
        host: str | None = None,
        patience: Patience = Patience(),
        max_connections: int = 1,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        import httpx
        from anyio.from_thread import start_blocking_portal

        address = ollama_url(host if host is not None else os.environ.get("OLLAMA_HOST", ""))
        self.url = re.sub("//[^/]*@", "//", address)  # for messages, without a password
        self.patience, self._say = patience, say
        timeout_s = self.patience.timeout_s
        try:
            if httpx.URL(address).scheme not in ("http", "https"):
                raise ValueError("neither http nor https")
            self._http = httpx.AsyncClient(
                base_url=address,
                timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
                limits=httpx.Limits(max_connections=max_connections),
                trust_env=False,  # a proxy for the web is none for a server of one's own
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ObserverError(f"{self.url}: no address ({error}); OLLAMA_HOST is to be HOST:PORT") from None
        self._stack = ExitStack()
        self.portal = self._stack.enter_context(start_blocking_portal())
        self._stack.callback(self.portal.call, self._http.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way and end the thread; a second call does nothing."""
        self._stack.close()

    def version(self) -> str:
        version = self._json("GET", "/api/version").get("version")
        if not isinstance(version, str):
            raise self._foreign()
        return version

    def listed(self, model: str) -> dict[str, Any]:
        """What the server tells of a model that it has. Raises ObserverError when it has no such model."""
        for entry in self._json("GET", "/api/tags").get("models") or ():
            if full_name(model) == full_name(str(entry.get("model") or entry.get("name"))):
                return entry
        raise self._missing(model)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """Raises TooLong, NoServer, or ObserverError with the server's words."""
        return self.portal.call(self.achat, body)

    async def achat(self, body: dict[str, Any]) -> dict[str, Any]:
        """`chat`, for what runs in the portal."""
        return await self._ajson("POST", "/api/chat", body)

    def push_blob(self, path: Path, digest: str, progress: Progress) -> bool:
        """Upload a file unless the server has it; return whether it was sent. `digest` is `sha256:…` of the file.

        A cut upload is asked for again: the server keeps whole blobs only. Raises ObserverError.
        """
        once = lambda: self._push_once(path, digest, progress)  # noqa: E731
        return self.portal.call(self._patiently, f"upload of {path.name}", once)

    def create(self, request: dict[str, Any]) -> None:
        """Create a model; it replaces one of the same name. Raises ObserverError with the server's words."""
        self.portal.call(self._patiently, f"creating {request['model']}", lambda: self._create_once(request))

    def _json(self, method: str, path: str) -> dict[str, Any]:
        return self.portal.call(self._ajson, method, path)

    async def _ajson(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        async def once() -> dict[str, Any]:
            with self._faults_named():
                async with asyncio.timeout(self.patience.timeout_s):  # httpx bounds each wait, this the whole answer
                    response = await self._http.request(method, path, json=body)
                return self.read(response, model)

        model = (body or {}).get("model", "")
        return await self._patiently(f"asking {model or 'for ' + path}", once)

    async def _push_once(self, path: Path, digest: str, progress: Progress) -> bool:
        blob = f"/api/blobs/{digest}"
        with self._faults_named():
            found = await self._http.head(blob)
            if found.status_code != 404:
                self._check(found)
                return False
            size = _size_of(path)
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            self._check(await self._http.post(blob, content=_blocks(path, size, progress), headers=headers))
            return True

    async def _create_once(self, request: dict[str, Any]) -> None:
        status = ""
        with self._faults_named():
            async with self._http.stream("POST", "/api/create", json=request) as response:
                if response.status_code >= 300:
                    await response.aread()
                    self._check(response)
                async for line in response.aiter_lines():
                    told = self._parse(line) if line.strip() else {}
                    if "error" in told:
                        raise ObserverError(f"{self.url}: {request['model']} was not created: {error_words(told)}")
                    if told.get("status", status) != status:
                        status = str(told["status"])
                        self._say(f"{request['model']}: {status}")
        if status != "success":
            raise _Passing("the answer ended before success")

    async def _patiently(self, what: str, once: Callable[[], Awaitable[T]]) -> T:
        tries = self.patience.max_retries + 1
        fault = _Passing("")
        for attempt in range(tries):
            try:
                return await once()
            except _Passing as error:
                fault = error
            if attempt + 1 < tries:
                pause_s = self.patience.backoff_s * 2**attempt
                self._say(f"{what}: {fault}; trying again in {pause_s:g} s")
                await asyncio.sleep(pause_s)
        if fault.is_down:
            raise NoServer(
                f"{self.url}: no Ollama server answers ({fault}); start it with `ollama serve`, "
                "or name another in OLLAMA_HOST"
            )
        raise ObserverError(f"{self.url}: {what} failed {tries} times, last: {fault}; {_fix(str(fault))}")

    @contextlib.contextmanager
    def _faults_named(self) -> Iterator[None]:
        """What goes wrong on the way is a _Passing, or an ObserverError when waiting longer is no use."""
        import httpx

        if self._http.is_closed:
            raise ObserverError(f"{self.url}: the connection was closed before the answer came")
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Passing(str(error) or "no connection in time", is_down=True) from None
        except (TimeoutError, httpx.TimeoutException):
            advice = "see the server's log, or raise timeout_s"
            raise ObserverError(f"{self.url}: no answer within {self.patience.timeout_s:g} s; {advice}") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Passing(str(error) or type(error).__name__) from None

    def read(self, response: httpx.Response, model: str = "") -> dict[str, Any]:
        """The JSON object of an answer. Raises as `chat` does, and _Passing."""
        self._check(response, model)
        return self._parse(response.content)

    def _check(self, response: httpx.Response, model: str = "") -> None:
        status = response.status_code
        if status < 300:
            return
        words = _words(response)
        if status >= 500 or status in _PASSING or "digest mismatch" in words:
            raise _Passing(f"{status}, {words}")
        if status == 404 and "not found" in words:
            raise self._missing(model)
        if any(phrase in words.lower() for phrase in _TOO_LONG):
            raise TooLong(words)
        raise ObserverError(f"{self.url}: {status}, {words}")

    def _parse(self, text: str | bytes) -> dict[str, Any]:
        try:
            value = parse_json(text)
        except ValueError:
            raise _Passing("the answer is not JSON") from None
        if not isinstance(value, dict):
            raise self._foreign()
        return value

    def _foreign(self) -> ObserverError:
        return ObserverError(f"{self.url}: what answers is no Ollama server; check OLLAMA_HOST")

    def _missing(self, model: str) -> ObserverError:
        return ObserverError(
            f"{self.url}: no model {model!r}; make it with `ollama create {model} -f outputs/RUN/Modelfile`, "
            f"or fetch it with `ollama pull {model}`"
        )


def server_version(host: str | None = None, timeout_s: float = 30.0) -> str:
    """Asked once. Raises NoServer when nobody answers, ObserverError when it is another server."""
    with OllamaClient(host, Patience(timeout_s, max_retries=0)) as client:
        return client.version()


def error_words(reply: Any) -> str:
    """What an error says: the innermost `message`, for Ollama passes on the JSON of its runner as text."""
    words = ""
    while reply:
        if isinstance(reply, dict):
            reply = reply.get("message") or reply.get("error")
            continue
        try:
            text = str(reply).strip()
            words = text[:300] or words
            reply = parse_json(text[text.index("{") : text.rindex("}") + 1])
        except (ValueError, RecursionError):  # no JSON in it, or a list too deep to be written
            break
    return words


def _words(response: httpx.Response) -> str:
    """What the server says of its error."""
    try:
        return error_words(parse_json(response.content)) or response.reason_phrase
    except ValueError:
        return response.text.strip()[:300] or response.reason_phrase


def _fix(why: str) -> str:
    if "digest mismatch" in why:
        return "the file changes while it is sent, or something in between alters it"
    if "no space left" in why:
        return "free some space on the server and run the same command again"
    return "see the server's log, and run the same command again"


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ObserverError(explain_os_error(error, path)) from error


async def _blocks(path: Path, size: int, progress: Progress) -> AsyncIterator[bytes]:
    done = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block
            done += len(block)
            progress(done, size)
