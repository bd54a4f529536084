"""A GGUF answering one prompt as llama-server does for Ollama: greedy, under the grammar of a JSON schema, with the
log-probabilities of the model's own distribution (before the grammar) and the likeliest tokens at each place."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf

from observer.engine.generation import log_sum_exp
from observer.engine.grammar import Grammar
from observer.engine.llama_context import BatchToken, LlamaContext, Logits
from observer.engine.llama_model import LlamaModel

N_CTX = 2048
MOST_REPEATS = 30
"""A token may follow itself so often; then Ollama ends the answer as not done."""


class ServedModel:
    """One request at a time, like a server with a single slot."""

    def __init__(self, path: Path) -> None:
        self.model = LlamaModel(path)
        self.context = LlamaContext(self.model, n_ctx=N_CTX, n_seq_max=1, n_threads=1)
        self._lock = threading.Lock()

    def close(self) -> None:
        """After the answer under way; requests that come later, from threads that outlive the server, fail."""
        with self._lock:
            self.context.close()
            self.model.close()

    def _check_open(self) -> None:
        if self.model.handle is None:
            raise ConnectionAbortedError("the server has ended")

    def n_tokens(self, prompt: str) -> int:
        with self._lock:
            self._check_open()
            return len(self.model.tokenize(prompt))

    def answer(self, prompt: str, num_predict: int, schema: Any, n_top: int | None) -> dict[str, Any]:
        """The fields of a chat answer; `logprobs` only when `n_top` is not None."""
        with self._lock:
            self._check_open()
            grammar = Grammar(self.model, json_schema_to_gbnf(json.dumps(schema))) if schema else None
            try:
                return self._generate(self.model.tokenize(prompt), num_predict, grammar, n_top)
            finally:
                self.context.clear(0)
                if grammar:
                    grammar.close()

    def _generate(
        self, prompt: list[int], num_predict: int, grammar: Grammar | None, n_top: int | None
    ) -> dict[str, Any]:
        tokens: list[int] = []
        told: list[dict[str, Any]] = []
        fresh, has_ended, n_repeats, last = prompt, False, 0, ""
        while len(tokens) < num_predict and not has_ended:
            start = len(prompt) + len(tokens) - len(fresh)
            batch = [BatchToken(t, start + n, (0,), n == len(fresh) - 1) for n, t in enumerate(fresh)]
            ((_, logits),) = [(place, logits.copy()) for place, logits in self.context.decode(batch)]
            token = grammar.best(logits) if grammar else int(logits.argmax())
            has_ended = self.model.is_end(token)
            text = self.model.detokenize([token]).strip()
            n_repeats, last = (n_repeats + 1 if text == last else 0), text
            if n_repeats > MOST_REPEATS and not has_ended:
                return self._answer(tokens, told, n_top) | {"done": False}
            if not has_ended:  # of the token that ends an answer nothing is told
                told.append(self._told(token, logits, n_top or 0))
                tokens.append(token)
                fresh = [token]
                if grammar:
                    grammar.accept(token)
        return self._answer(tokens, told, n_top) | {"done": True, "done_reason": "stop" if has_ended else "length"}

    def _answer(self, tokens: list[int], told: list[dict[str, Any]], n_top: int | None) -> dict[str, Any]:
        answer = {"message": {"role": "assistant", "content": self.model.detokenize(tokens)}}
        return answer | ({"logprobs": told} if n_top is not None else {})

    def _told(self, token: int, logits: Logits, n_top: int) -> dict[str, Any]:
        total = log_sum_exp(logits)
        highest = np.argsort(-logits)[:n_top]

        def entry(token: int) -> dict[str, Any]:
            text = "<|im_end|>" if self.model.is_end(token) else self.model.detokenize([token])
            return {"token": text, "bytes": list(text.encode()), "logprob": float(logits[token]) - total}

        return entry(token) | ({"top_logprobs": [entry(int(other)) for other in highest]} if n_top else {})
