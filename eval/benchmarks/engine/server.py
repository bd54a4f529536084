"""llama.cpp's own server as a contestant: parallel slots on loopback, asked concurrently.

Its slots keep the prompt they had last, so each begins with the instruction. Prompts and grammar are ours.
"""

from __future__ import annotations

import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from eval.benchmarks.engine.engines import CONTEXT_TOKENS, Limits, Rows, Turn, timed
from eval.benchmarks.harness import last_words, stop
from observer.errors import ObserverError
from observer.prompts import Task, render_prompt
from observer.schema import extraction_grammar

_START_S = 300.0
_ANSWER_S = 600.0


class LlamaServer:
    """`binary` running with as many slots as the engine has sequences. Raises ObserverError when it does not start."""

    def __init__(self, binary: Path, model: Path, limits: Limits, log: Path) -> None:
        self.limits, self.port, self.log = limits, _free_port(), log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            try:
                self.process = subprocess.Popen(self._command(binary, model), stdout=stream, stderr=stream)
            except OSError as error:
                raise ObserverError(f"--llama-server {binary}: cannot be run ({error.strerror})") from error
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.pool = ThreadPoolExecutor(limits.n_seq)

    def _command(self, binary: Path, model: Path) -> list[str]:
        threads, slots = str(self.limits.n_threads), self.limits.n_seq
        command = [str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--parallel", str(slots), "--ctx-size", str(slots * CONTEXT_TOKENS)]
        command += ["--threads", threads, "--threads-batch", threads]
        return [*command, "--cache-ram", "0"]  # or it would know the rows of the last round

    def answer(self, rows: Rows) -> Turn:
        turn = Turn()
        for task in Task:
            with timed(turn, task):
                answers = list(self.pool.map(lambda exchange, task=task: self._ask(task, exchange), rows[task]))
            turn.answers[task] = [text for text, _ in answers]
            turn.n_written[task] = sum(n_tokens for _, n_tokens in answers)
        return turn

    def close(self) -> None:
        self.process.terminate()
        stop(self.process)
        if hasattr(self, "pool"):
            self.pool.shutdown()

    def _ask(self, task: Task, exchange: str) -> tuple[str, int]:
        """The answer and its tokens."""
        request = {
            "prompt": render_prompt(task, exchange),
            "n_predict": self.limits.of(task),
            "temperature": 0.0,
            "cache_prompt": True,
        }
        if task is Task.EXTRACT:
            request["grammar"] = extraction_grammar()
        answer = self.post("/completion", request)
        return answer["content"], answer["tokens_predicted"]

    def post(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        # A connection for each: the server closes those that are idle while the others have their turn.
        url = f"http://127.0.0.1:{self.port}{path}"
        response = httpx.post(url, json=request, timeout=_ANSWER_S, trust_env=False)
        if response.status_code != 200:
            raise ObserverError(f"llama-server answered {response.status_code}: {response.content[:300]!r}")
        return response.json()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ObserverError(f"llama-server: {last_words(self.log, 'it ended without a word')}")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise ObserverError(f"llama-server was not ready after {_START_S:.0f} s [{self.log}]")

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
