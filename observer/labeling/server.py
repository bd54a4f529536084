"""One call to a server with OpenAI's chat API: structured output as far as it goes, and what an error means.

Retries, backoff with jitter and Retry-After are the openai client's own.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from observer.errors import ObserverError
from observer.labeling.answers_file import Answer
from observer.labeling.jobs import Call, Sampling
from observer.labeling.pricing import Price
from observer.labeling.prompts import answer_schema
from observer.prompts import Task

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
MAX_ANSWER_TOKENS = 4096
"""Bounds what a model that repeats itself can cost; a long extraction has some hundred tokens."""

FORMATS = ("a JSON schema", "JSON without a schema", "plain text")


class NotAnswered(Exception):
    """The call failed after all retries; another run may get an answer."""


class Refused(Exception):
    """The server will not take this very request."""


@dataclass(frozen=True)
class Endpoint:
    """Where and how patiently to ask."""

    base_url: str = OPENAI_URL
    timeout_s: float = 60.0
    max_retries: int = 5

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class Server:
    """An open client. `level` is the FORMATS entry in use; it falls until one is accepted, and then stays."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, price: Price | None, say: Callable[[str], None]) -> None:
        self.endpoint, self.sampling, self.price, self._say = endpoint, sampling, price, say
        self.level, self.is_level_proven = 0, False
        self._key = read_key(endpoint)
        self._client = _open_client(endpoint, self._key)

    async def ask(self, call: Call) -> Answer:
        """Send one call. Raises NotAnswered, Refused, or ObserverError for what fails every call alike."""
        import openai

        level, refusal = self.level, ""
        while level < len(FORMATS):
            try:
                answer = self._read(await self._create(call, level), call)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refusal = self._explain(error)
                if level == self.level and self.is_level_proven:
                    break
                level = max(level + 1, self.level)
                continue
            except openai.APIStatusError as error:
                raise self._sort(error) from None
            except (openai.OpenAIError, ValueError) as error:  # no connection, a timeout, a body that is not JSON
                raise NotAnswered(f"{self.endpoint.host}: {self._explain(error)}") from None
            self._settle(level)
            return answer
        raise Refused(f"the server refused the request: {refusal}")

    async def close(self) -> None:
        await self._client.close()

    async def _create(self, call: Call, level: int) -> Any:
        options: dict[str, Any] = {}
        if level < 2:
            options["response_format"] = _response_format(call.task) if level == 0 else {"type": "json_object"}
        messages: Any = call.messages
        return await self._client.chat.completions.create(
            model=self.sampling.model,
            messages=messages,
            temperature=self.sampling.temperature,
            max_completion_tokens=MAX_ANSWER_TOKENS,
            **options,
        )

    def _settle(self, level: int) -> None:
        if level > self.level and not self.is_level_proven:
            self._say(f"{self.endpoint.host} does not take {FORMATS[self.level]}; going on with {FORMATS[level]}")
            self.level = level
        self.is_level_proven = True

    def _read(self, completion: Any, call: Call) -> Answer:
        choices: list[Any] = getattr(completion, "choices", None) or [None]
        message = getattr(choices[0], "message", None)
        if message is None:
            raise NotAnswered("the reply is no chat completion; is --base-url right? It usually ends in /v1")
        usage, (prompt_tokens, completion_tokens) = completion.usage, call.tokens
        if usage:
            prompt_tokens, completion_tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0
        return Answer(
            text=self._scrub(message.content or ""),
            finish_reason=choices[0].finish_reason or "stop",
            refusal=self._scrub(getattr(message, "refusal", None) or ""),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_usd=self.price.cost_usd(prompt_tokens, completion_tokens) if self.price else 0.0,
        )

    def _sort(self, error: openai.APIStatusError) -> Exception:
        """What a status means for the run: stop at once, set the row aside, or leave it for the next run."""
        what = f"{self.endpoint.host}: {self._explain(error)}"
        again = "and run the same command again"
        if error.status_code == 401:
            return ObserverError(f"{what}; OPENAI_API_KEY is not accepted there: set a valid key {again}")
        if error.status_code == 403:
            return ObserverError(f"{what}; this key may not use {self.sampling.model!r}: mend its rights {again}")
        if error.status_code == 404:
            return ObserverError(
                f"{what}; is {self.sampling.model!r} a model there, and --base-url right? Mend it {again}"
            )
        if error.code == "insufficient_quota":
            return ObserverError(f"{what}; the account has no credit: top it up {again}")
        if error.status_code == 413:
            return Refused(what)
        if error.status_code >= 500 or error.status_code in (408, 409, 429):
            return NotAnswered(what)
        return ObserverError(f"{what}; check --base-url and --model, {again}")

    def _explain(self, error: Exception) -> str:
        """One line, without the key."""
        import openai

        what = getattr(error, "message", "") or str(error) or type(error).__name__
        if isinstance(error, openai.APIStatusError):
            told = error.body.get("message") if isinstance(error.body, dict) else error.response.reason_phrase
            what = f"{error.status_code}, {told or what}"
        elif isinstance(error, openai.APIConnectionError) and error.__cause__ is not None:
            what = f"{what} {type(error.__cause__).__name__} {error.__cause__}"
        elif isinstance(error, ValueError):
            what = f"the reply is not JSON ({what})"
        return " ".join(self._scrub(what).split())[:300]

    def _scrub(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be written
        return text.replace(self._key, "[key]") if len(self._key) > 10 else text  # "none", "test": no secret


def read_key(endpoint: Endpoint) -> str:
    """OPENAI_API_KEY; a server on this machine needs none. Raises ObserverError when it is missing or malformed."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and endpoint.is_loopback:
        return "none"
    if not key:
        raise ObserverError(
            f"OPENAI_API_KEY: not set, and {endpoint.host} needs a key; "
            "export it, or name a server of your own with --base-url http://localhost:11434/v1"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ObserverError("OPENAI_API_KEY: holds characters that no key has; export it anew")
    return key


def _open_client(endpoint: Endpoint, key: str) -> openai.AsyncOpenAI:
    try:
        import openai
    except ImportError:
        raise ObserverError("openai: not installed; pip install 'observer[label]'") from None
    # a proxy from the environment cannot reach a server on this machine
    http_client = openai.DefaultAsyncHttpxClient(trust_env=False) if endpoint.is_loopback else None
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=endpoint.base_url,
        timeout=endpoint.timeout_s,
        max_retries=endpoint.max_retries,
        http_client=http_client,
    )


def _response_format(task: Task) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": str(task), "strict": True, "schema": answer_schema(task)}}
