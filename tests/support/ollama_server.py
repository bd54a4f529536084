"""A real HTTP server on loopback with the blob, create and chat endpoints of Ollama's API, and faults to order.

Like the original it keeps whole blobs only, checks their digests, knows a model's files by digest alone, renders the
TEMPLATE that it was given, and answers through llama.cpp, with `format` and log-probabilities. Source: server/create.go
and routes.go of ollama/ollama.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from observer.errors import ObserverError
from observer.ollama.address import full_name, ollama_url
from observer.prompts import OLLAMA_TEMPLATE
from tests.support.go_template import render_go_template
from tests.support.loopback import Asked, Loopback, Sent
from tests.support.ollama_model import N_CTX, ServedModel


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next request to a path: `cut` closes the connection after half of what is due."""

    path: str
    status: int = 0
    message: str = ""
    is_cut: bool = False
    delay_s: float = 0.0
    spoils_body: bool = False
    answers_early: bool = False


@dataclass
class OllamaServer:
    """`requests` are all that came, as `METHOD path`; `bodies` those of chats; `models` what was created.

    Blobs lie in `folder`. `reply`, with `logprobs`, stands in for the models' answers; `n_loads` counts how often one
    was loaded: another one, or the same with another `shift`.
    """

    folder: Path
    version: str = "0.32.15"
    has_debug: bool = True
    has_logprobs: bool = True
    reply: str | None = None
    template: str | None = None
    thinking: str = ""
    requests: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = True
    n_loads: int = 0
    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._loaded: dict[str, ServedModel] = {}
        self._last_load: tuple[str, Any] | None = None
        self._loading = threading.Lock()
        self._http = Loopback(self._send)
        self.url = self._http.url

    @contextmanager
    def running(self) -> Iterator[OllamaServer]:
        try:
            with self._http.serving(self):
                yield self
        finally:
            for served in self._loaded.values():
                served.close()

    def blob(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")

    def create(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines of the answer."""
        for digest in [*body.get("files", {}).values(), *body.get("adapters", {}).values()]:
            if not self.blob(digest).exists():
                return [{"error": f"open {digest}: no such file or directory"}]
        if not body.get("files") and not body.get("from"):
            return [{"error": "neither 'from' or 'files' was specified"}]
        self.models[self.known_as(body["model"]) or body["model"]] = body
        return [{"status": "parsing GGUF"}, {"status": "writing manifest"}, {"status": "success"}]

    def known_as(self, name: str) -> str | None:
        """The name under which there is such a model: case, registry and the tag `latest` make no difference."""
        wanted = _full_name(name)
        return next((known for known in self.models if wanted and full_name(known) == wanted), None)

    def serve(self, name: str, gguf: Path) -> None:
        """Have a model as `observer package` makes it, without the upload."""
        digest = f"sha256:{hashlib.sha256(gguf.read_bytes()).hexdigest()}"
        if not self.blob(digest).exists():
            self.blob(digest).symlink_to(gguf)
        parameters = {"num_predict": 512}
        self.models[name] = {"files": {gguf.name: digest}, "template": OLLAMA_TEMPLATE, "parameters": parameters}

    def tags(self) -> dict[str, Any]:
        """The answer to /api/tags; a name without a tag is `latest`."""
        return {
            "models": [
                {
                    "name": name if ":" in name else f"{name}:latest",
                    "digest": self.digest_of(model),
                    "details": {"quantization_level": "F32"},
                }
                for name, model in self.models.items()
            ]
        }

    @staticmethod
    def digest_of(model: dict[str, Any]) -> str:
        """Of the manifest, which names a rewritten copy of the file that was sent."""
        return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        name = self.known_as(body["model"])
        assert name, "asked for before"
        model, messages = self.models[name], body["messages"]
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": model["system"]}, *messages]
        prompt = render_go_template(self.template or model["template"], messages)
        if body.get("_debug_render_only") and self.has_debug:
            return {"_debug_info": {"rendered_template": prompt}}
        load = (self.digest_of(model), body.get("shift"))
        self.n_loads, self._last_load = self.n_loads + (load != self._last_load), load
        if self.reply is not None:
            answer = {"message": {"role": "assistant", "content": self.reply, "thinking": self.thinking}}
            return answer | {"done": self.is_done, "logprobs": self.logprobs if self.has_logprobs else []}
        served = self._served(model)
        if body.get("truncate") is False and served.n_tokens(prompt) > N_CTX:
            return {"error": json.dumps(TOO_LONG)}
        num_predict = body.get("options", {}).get("num_predict", model["parameters"]["num_predict"])
        n_top = body.get("top_logprobs", 0) if body.get("logprobs") and self.has_logprobs else None
        answer = served.answer(prompt, num_predict, body.get("format"), n_top)
        message = answer["message"] | {"thinking": self.thinking}
        return answer | {"message": message}

    def _send(self, asked: Asked) -> Sent | None:
        self.requests.append(f"{asked.method} {asked.path}")
        if asked.method == "HEAD":
            return Sent(status=200 if self.blob(asked.path.rpartition("/")[2]).exists() else 404)
        if asked.method == "GET":
            return Sent(self.tags() if asked.path == "/api/tags" else {"version": self.version})
        is_due = self.faults and asked.path.startswith(self.faults[0].path)
        fault = self.faults.popleft() if is_due else Fault(asked.path)
        time.sleep(fault.delay_s)
        if fault.answers_early:
            return Sent({"error": fault.message}, fault.status, is_last=True)
        is_blob = "/blobs/" in asked.path
        body = asked.read(asked.size // 2 if fault.is_cut and is_blob else None)
        if fault.status:
            return Sent({"error": fault.message}, fault.status)
        if is_blob:
            return None if fault.is_cut else self._keep(asked.path, body + b"!" * fault.spoils_body)
        return self._ask_model(asked.path, json.loads(body), fault)

    def _keep(self, path: str, body: bytes) -> Sent:
        expected, found = path.rpartition("/")[2], f"sha256:{hashlib.sha256(body).hexdigest()}"
        if found != expected:
            return Sent({"error": f'digest mismatch, expected "{expected}", got "{found}"'}, 400)
        self.blob(found).write_bytes(body)
        return Sent(status=201)

    def _ask_model(self, path: str, body: dict[str, Any], fault: Fault) -> Sent:
        is_chat = path == "/api/chat"
        if not is_chat and _full_name(body["model"]) is None:
            return Sent({"error": "invalid model name"}, 400)
        if is_chat and self.known_as(body["model"]) is None:
            return Sent({"error": f"model '{body['model']}' not found"}, 404)
        lines = [self.chat(body)] if is_chat else self.create(body)
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return Sent(data, 400 if is_chat and "error" in lines[0] else 200, is_cut=fault.is_cut)

    def _served(self, model: dict[str, Any]) -> ServedModel:
        (digest,) = model["files"].values()
        with self._loading:
            if digest not in self._loaded:
                self._loaded[digest] = ServedModel(self.blob(digest))
            return self._loaded[digest]


def delete_ollama_model(name: str) -> None:
    """From the real server at OLLAMA_HOST."""
    url = f"{ollama_url(os.environ.get('OLLAMA_HOST', ''))}/api/delete"
    httpx.request("DELETE", url, json={"model": name}, timeout=30, trust_env=False).raise_for_status()


TOO_LONG = {"error": {"code": 400, "message": "the request (2100 tokens) exceeds the available context size (2048)"}}
"""What the runner says, passed on as a text."""


def _full_name(name: str) -> str | None:
    try:
        return full_name(name)
    except ObserverError:
        return None
