"""One call to a server with OpenAI's chat API: structured output as far as it goes, and what an error means.

Retries, backoff with jitter and Retry-After are the openai client's own.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from observer.errors import ObserverError
from observer.labeling.answers_file import Answer
from observer.labeling.jobs import Call, Sampling
from observer.labeling.pricing import Price
from observer.labeling.prompts import answer_schema

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
LIMITS = (("max_completion_tokens", 4096), ("max_tokens", 4096), ("max_completion_tokens", 1024), ("max_tokens", 1024))
"""Bounds what a model that repeats itself can cost; a long extraction has some hundred tokens. The name that servers
know differs, and so does the most that they allow."""

FORMATS = ("a JSON schema", "JSON without a schema", "plain text")
_OF_THE_FORMAT = ("response_format", "json_schema", "structured output", "requested parameters")
"""What refusals of a format say; the last is OpenRouter's."""


class NotAnswered(Exception):
    """The call failed after all retries; another run may get an answer. `paid` is an answer that says nothing."""

    def __init__(self, why: str, paid: Answer | None = None) -> None:
        super().__init__(why)
        self.paid = paid


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
    def identity(self) -> str:
        """What tells it from other servers in the ledger's keys; empty for OpenAI's."""
        parts = urlsplit(self.base_url)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".lower().rstrip("/")
        return "" if address == OPENAI_URL else address

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True)
class Shape:
    """How a request is put: indices into FORMATS and LIMITS, and whether the temperature is named."""

    level: int = 0
    limit: int = 0
    has_temperature: bool = True

    def after(self, refusal: str) -> Shape | None:
        """What to try when the server refuses this one in those words; None when nothing is left."""
        is_of_the_format = any(words in refusal for words in _OF_THE_FORMAT)
        if not is_of_the_format and self.has_temperature and "temperature" in refusal:
            return replace(self, has_temperature=False)
        if not is_of_the_format and any(name in refusal for name, _ in LIMITS):
            return replace(self, limit=self.limit + 1) if self.limit + 1 < len(LIMITS) else None
        return replace(self, level=self.level + 1) if self.level + 1 < len(FORMATS) else None


class Server:
    """An open client. `shape` changes until one is accepted, and then stays."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, price: Price | None, say: Callable[[str], None]) -> None:
        self.endpoint, self.sampling, self.price, self._say = endpoint, sampling, price, say
        self.shape, self.is_proven = Shape(), False
        self._key = read_key(endpoint)
        self._client = _open_client(endpoint, self._key)

    async def ask(self, call: Call) -> Answer:
        """Send one call. Raises NotAnswered, Refused, or ObserverError for what fails every call alike."""
        import openai

        shape, refusal = self.shape, ""
        while shape:
            try:
                answer = self._read(await self._create(call, shape), call)
            except openai.APIStatusError as error:
                if not self._is_refusal(error):
                    raise self._sort(error) from None
                refusal = self._explain(error)
                if not self.is_proven:
                    shape = shape.after(error.response.text)
                else:  # by another call, in the meantime
                    shape = self.shape if shape != self.shape else None
                continue
            except (openai.OpenAIError, ValueError, RecursionError) as error:  # no connection, no time, no plain JSON
                raise NotAnswered(f"{self.endpoint.host}: {self._explain(error)}") from None
            self._settle(shape)
            return answer
        raise Refused(f"the server refused the request: {refusal}")

    async def close(self) -> None:
        await self._client.close()

    async def _create(self, call: Call, shape: Shape) -> Any:
        options: dict[str, Any] = dict([LIMITS[shape.limit]])
        if shape.has_temperature:
            options["temperature"] = self.sampling.temperature
        if shape.level < 2:
            schema = {"name": str(call.task), "strict": True, "schema": answer_schema(call.task)}
            strict = {"type": "json_schema", "json_schema": schema}
            options["response_format"] = strict if shape.level == 0 else {"type": "json_object"}
        messages: Any = call.messages
        return await self._client.chat.completions.create(model=self.sampling.model, messages=messages, **options)

    def _settle(self, shape: Shape) -> None:
        if shape.level > 0 and not self.is_proven:
            self._say(f"{self.endpoint.host} does not take {FORMATS[0]}; going on with {FORMATS[shape.level]}")
        if not (shape.has_temperature or self.is_proven):
            self._say(f"{self.endpoint.host} does not take this temperature; going on with the model's own")
        if not self.is_proven:
            self.shape, self.is_proven = shape, True

    def _read(self, completion: Any, call: Call) -> Answer:
        """Raises NotAnswered for what is no completion, and for one that says nothing."""
        choices = getattr(completion, "choices", None)
        choice: Any = choices[0] if isinstance(choices, list) and choices else None
        message, fault = getattr(choice, "message", None), _inner_fault(choice) or _inner_fault(completion)
        if message is None or isinstance(message, str):
            told = _words_of(_field(completion, "message") or _field(completion, "detail"))
            why = fault or told or "the reply is no chat completion; is --base-url right? It usually ends in /v1"
            raise NotAnswered(f"{self.endpoint.host}: {self._scrub(why)}")
        usage = getattr(completion, "usage", None)
        estimated_prompt, estimated_completion = call.tokens
        prompt_tokens = _count(getattr(usage, "prompt_tokens", None), estimated_prompt)
        completion_tokens = _count(getattr(usage, "completion_tokens", None), estimated_completion)
        answer = Answer(
            text=self._scrub(_text_of(_field(message, "content"))),
            finish_reason=str(_field(choice, "finish_reason") or ("error" if fault else "stop")),
            refusal=self._scrub(str(_field(message, "refusal") or "")),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_usd=self.price.cost_usd(prompt_tokens, completion_tokens) if self.price else 0.0,
        )
        if answer.is_none:
            raise NotAnswered(f"{self.endpoint.host}: {self._scrub(fault or _why_none(message, answer))}", answer)
        return answer

    def _is_refusal(self, error: openai.APIStatusError) -> bool:
        """Whether the request is at fault: some servers do not know what they are asked for and say 404 or 500."""
        if error.status_code in (400, 422):
            return True
        is_unknown = error.status_code in (404, 500, 501) and not self.is_proven
        return is_unknown and any(words in error.response.text for words in _OF_THE_FORMAT)

    def _sort(self, error: openai.APIStatusError) -> Exception:
        """What a status means for the run: stop at once, set the row aside, or leave it for the next run."""
        what, model = f"{self.endpoint.host}: {self._explain(error)}", self.sampling.model
        status = 402 if error.code == "insufficient_quota" else error.status_code
        is_rate = status == 403 and "rate limit" in what.lower()
        if status == 413:
            return Refused(what)
        if status >= 500 or status in (408, 409, 429) or is_rate:
            return NotAnswered(what)
        advice = {
            401: "OPENAI_API_KEY is not accepted there: set a valid key",
            402: "the account has no credit: top it up",
            403: f"this key may not use {model!r}: fix its rights",
            404: f"is {model!r} a model there, and --base-url right? Fix it",
        }
        return ObserverError(
            f"{what}; {advice.get(status, 'check --base-url and --model,')} and run the same command again"
        )

    def _explain(self, error: Exception) -> str:
        """One line, without the key."""
        import openai

        what = getattr(error, "message", "") or str(error) or type(error).__name__
        if isinstance(error, openai.APIStatusError):
            what = f"{error.status_code}, {_words_of(error.body) or error.response.reason_phrase}"
        elif isinstance(error, openai.APIConnectionError) and error.__cause__ is not None:
            what = f"{what} {type(error.__cause__).__name__} {error.__cause__}"
        elif isinstance(error, RecursionError):
            what = "the reply is nested too deeply"
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
        raise ObserverError("openai: not installed; pip install -e '.[label]'") from None
    # a proxy from the environment cannot reach a server on this machine
    http_client = openai.DefaultAsyncHttpxClient(trust_env=False) if endpoint.is_loopback else None
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=endpoint.base_url,
        timeout=endpoint.timeout_s,
        max_retries=endpoint.max_retries,
        http_client=http_client,
    )


def _text_of(content: Any) -> str:
    """The text of a message without parts that are thinking; empty where a part is neither."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    said = [part for part in parts if _field(part, "type") not in ("thinking", "reasoning", "redacted_thinking")]
    texts = [part if isinstance(part, str) else _field(part, "text") for part in said]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else ""


def _why_none(message: Any, answer: Answer) -> str:
    if answer.text.strip():
        return f"the answer ends in {answer.finish_reason!r}"
    if _field(message, "content") and not answer.text:
        return "the answer has parts that are no text"
    others = [name for name in ("reasoning_content", "reasoning", "tool_calls") if _field(message, name)]
    advice = f", its {others[0]} is not; switch thinking and tools off there" if others else ""
    return f"the answer is empty{advice}"


def _inner_fault(reply: Any) -> str:
    """The words of an error that came with status 200."""
    error = _field(reply, "error")
    words = [_words_of(value) for name in ("code", "message") if (value := _field(error, name))]
    return (", ".join(words) or _words_of(error))[:300]


def _words_of(body: Any) -> str:
    """What the body of an error says, in the ways of many servers; nothing where it is a page of HTML."""
    while isinstance(body, dict) and (name := next((n for n in ("message", "detail", "error") if body.get(n)), "")):
        body = body[name]
    try:
        text = str(body or "")
    except RecursionError:
        return "words that are nested too deeply"
    return "" if text.lstrip().startswith("<") else text


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _count(value: Any, otherwise: int) -> int:
    """A number of tokens, which some servers write as text; `otherwise` where there is none."""
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return otherwise
