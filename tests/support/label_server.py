"""A real HTTP server on loopback that speaks OpenAI's chat API, with faults that a test programs."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from observer.labeling.prompts import INSTRUCTIONS
from observer.prompts import Task
from tests.support.loopback import Asked, Loopback, Sent


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


class LabelServer:
    """Answers with `plan(request)`; `received` holds every request in the order it came."""

    def __init__(self, plan: Callable[[Received], Reply]) -> None:
        self.plan, self.received = plan, list[Received]()
        self._lock, self._counts = threading.Lock(), Counter[tuple[str, str]]()
        self._http = Loopback(self._send)
        self.url = f"{self._http.url}/v1"

    def running(self) -> AbstractContextManager[LabelServer]:
        return self._http.serving(self)

    def _send(self, asked: Asked) -> Sent:
        body, key = asked.json(), asked.headers.get("Authorization", "").removeprefix("Bearer ")
        identity = (body["messages"][0]["content"], body["messages"][1]["content"])
        with self._lock:
            self._counts[identity] += 1
            request = Received(body, key, time.monotonic(), self._counts[identity])
            self.received.append(request)
        reply = self.plan(request)
        time.sleep(reply.delay_s)
        data = (reply.body if reply.body is not None else _body(request, reply)).encode()
        return Sent(data, reply.status, reply.headers, reply.is_cut)


def _body(request: Received, reply: Reply) -> str:
    if reply.status != 200:
        return json.dumps({"error": {"message": reply.message, "type": "error", "code": None}})
    text = sound_answer(request.task, request.exchange) if reply.text is None else reply.text
    message = {"role": "assistant", "content": text, "refusal": reply.refusal}
    usage = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "test", "choices": [choice]}
    return json.dumps(completion | ({"usage": usage} if reply.has_usage else {}))
