"""One question to an Ollama server's /api/chat and what came of it: patience, timeouts, faults in one line.

API: https://github.com/ollama/ollama/blob/main/docs/api.md. Retried are faults that may pass: a lost connection, a
cut answer, 5xx, 408 and 429. A server that stays silent for the whole timeout is not asked again.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from observer.errors import ObserverError
from observer.files import parse_json
from observer.ollama.address import full_name, ollama_url
from observer.ollama.client import NoServer, error_words, is_stopped

if TYPE_CHECKING:
    import httpx

_PASSING = frozenset({408, 429})
_TOO_LONG = ("context length", "context size", "context window", "too long")


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


@dataclass(frozen=True)
class TokenChoice:
    """A generated token's text, its natural log-probability, and the likeliest tokens at its place."""

    text: str
    logprob: float
    alternatives: dict[str, float]


@dataclass(frozen=True)
class Reply:
    """`choices` is empty where the server does not tell log-probabilities (before 0.12.11)."""

    content: str
    truncated: bool
    choices: list[TokenChoice]


class OllamaChat:
    """A client bound to the event loop it is first used in."""

    def __init__(self, host: str | None, patience: Patience, max_connections: int) -> None:
        import httpx

        address = ollama_url(host if host is not None else os.environ.get("OLLAMA_HOST", ""))
        self.url = re.sub("//[^/]*@", "//", address)  # for messages, without a password
        self.patience = patience
        try:
            self._http = httpx.AsyncClient(
                base_url=address,
                timeout=httpx.Timeout(patience.timeout_s, connect=min(10.0, patience.timeout_s)),
                limits=httpx.Limits(max_connections=max_connections),
                trust_env=False,  # a proxy for the web is none for a server of one's own
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ObserverError(f"{self.url}: no address ({error}); OLLAMA_HOST is to be HOST:PORT") from None

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, body: dict[str, Any]) -> Reply:
        """Raises TooLong, NoServer, or ObserverError with the server's words."""
        return self.reply_of(await self._patiently("POST", "/api/chat", body))

    def reply_of(self, answer: dict[str, Any]) -> Reply:
        """What a 200 of /api/chat says. Raises ObserverError when it is another server's."""
        try:
            content = (answer.get("message") or {}).get("content") or ""
            choices = [_choice(entry) for entry in answer.get("logprobs") or ()]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            content, choices = None, []
        if not isinstance(content, str):
            raise ObserverError(f"{self.url}: what answers is no Ollama server; check OLLAMA_HOST")
        return Reply(content, is_stopped(answer), choices)

    async def digest(self, model: str) -> str:
        """The digest of the model's manifest. Raises ObserverError when the server has no such model."""
        return str((await self._listed(model)).get("digest", ""))

    async def describe(self, model: str) -> str:
        """The server's version, the model's quantization and the head of its digest."""
        entry = await self._listed(model)
        version = (await self._patiently("GET", "/api/version", None)).get("version", "of an unknown version")
        kind = (entry.get("details") or {}).get("quantization_level")
        digest = f"digest {str(entry.get('digest', '')).removeprefix('sha256:')[:12]}"
        return ", ".join(filter(None, [f"Ollama {version}", kind, digest]))

    async def _listed(self, model: str) -> dict[str, Any]:
        listed = await self._patiently("GET", "/api/tags", None)
        for entry in listed.get("models") or ():
            if full_name(model) == full_name(str(entry.get("model") or entry.get("name"))):
                return entry
        raise ObserverError(self._missing(model))

    async def _patiently(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        passing = _Passing("")
        for attempt in range(self.patience.max_retries + 1):
            if attempt:
                await asyncio.sleep(self.patience.backoff_s * 2 ** (attempt - 1))
            try:
                return await self._once(method, path, body)
            except _Passing as error:
                passing = error
        if passing.is_down:
            raise NoServer(
                f"{self.url}: no Ollama server answers ({passing}); start it with `ollama serve`, "
                "or name another in OLLAMA_HOST"
            )
        tries = self.patience.max_retries + 1
        raise ObserverError(f"{self.url}: failed {tries} times, last: {passing}; see the server's log")

    async def _once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        import httpx

        if self._http.is_closed:
            raise ObserverError(f"{self.url}: the connection was closed before the answer came")
        timeout_s = self.patience.timeout_s
        try:
            async with asyncio.timeout(timeout_s):  # httpx bounds each wait for bytes, this the answer as a whole
                response = await self._http.request(method, path, json=body)
            return self._read(response, body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Passing(str(error) or "no connection in time", is_down=True) from None
        except (TimeoutError, httpx.TimeoutException):
            advice = "see the server's log, or raise timeout_s"
            raise ObserverError(f"{self.url}: no answer within {timeout_s:g} s; {advice}") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Passing(str(error) or type(error).__name__) from None

    def _read(self, response: httpx.Response, body: dict[str, Any] | None) -> dict[str, Any]:
        status = response.status_code
        if status >= 500 or status in _PASSING:
            raise _Passing(f"{status}, {_words(response)}")
        if status >= 300:
            words, model = _words(response), (body or {}).get("model", "")
            if status == 404 and "not found" in words:
                raise ObserverError(self._missing(model))
            if any(phrase in words.lower() for phrase in _TOO_LONG):
                raise TooLong(words)
            raise ObserverError(f"{self.url}: {status}, {words}")
        try:
            answer = parse_json(response.content)
        except ValueError:
            raise _Passing("the answer is not JSON") from None
        if not isinstance(answer, dict):
            raise ObserverError(f"{self.url}: what answers is no Ollama server; check OLLAMA_HOST")
        return answer

    def _missing(self, model: str) -> str:
        return (
            f"{self.url}: no model {model!r}; make it with `ollama create {model} -f outputs/RUN/Modelfile`, "
            f"or fetch it with `ollama pull {model}`"
        )


def _words(response: httpx.Response) -> str:
    """What the server says of its error."""
    try:
        return error_words(parse_json(response.content)) or response.reason_phrase
    except (ValueError, RecursionError):
        return response.text.strip()[:300] or response.reason_phrase


def _choice(entry: dict[str, Any]) -> TokenChoice:
    """Raises KeyError, TypeError, ValueError or AttributeError for what is none."""
    alternatives = {str(other["token"]): _logprob(other) for other in entry.get("top_logprobs") or ()}
    return TokenChoice(str(entry["token"]), _logprob(entry), alternatives)


def _logprob(entry: dict[str, Any]) -> float:
    logprob = float(entry["logprob"])
    if not logprob < 1e-3:  # above 0 by rounding at most, and NaN is nothing
        raise ValueError(f"{logprob} is no log-probability")
    return logprob
