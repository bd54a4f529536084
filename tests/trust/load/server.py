"""A loopback server that speaks Ollama's /api/chat and has the engine's answers by heart: it tests the client alone.

Started by `answering` as a process of its own, so that its memory and its threads are not the client's. It computes
nothing, which makes the client, not a model, the slow part; every `unavailable_every`-th question is refused with 503
first, as a busy server does, and has to be asked again.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from observer.backends.base import Backend
from observer.errors import ObserverError
from observer.files import write_json
from observer.observation import Completion, Exchange, Grade
from observer.paths import python_path
from observer.prompts import Task, with_cue
from observer.turns.before_model import prepare
from tests.support.loopback import Asked, Loopback, Sent

MODEL = "load"
_START_S = 300.0


def record_answers(backend: Backend, turns: Sequence[Exchange], path: Path) -> None:
    """Ask the model both tasks of every turn, each alone, and write what a server of it would answer."""
    answers: dict[str, dict[str, Any]] = {task: {} for task in Task}
    for turn in turns:
        prompt = prepare(turn).prompt
        answers[Task.GRADE][prompt] = _graded(backend.grade([prompt])[0])
        answers[Task.EXTRACT][prompt] = _extracted(backend.extract([prompt], logprobs=True)[0])
    write_json(path, answers, is_private=True)


def _graded(grade: Grade) -> dict[str, Any]:
    """The label as one token, beside the other labels with their probabilities."""
    shares = [{"token": label, "logprob": _log(share)} for label, share in grade.probabilities.items()]
    told = {"token": grade.label, "logprob": _log(grade.probabilities[grade.label]), "top_logprobs": shares}
    return {"message": {"role": "assistant", "content": grade.label}, "logprobs": [told], "done": True}


def _extracted(completion: Completion) -> dict[str, Any]:
    told = [{"token": "?", "logprob": logprob} for logprob in completion.logprobs or ()]
    reason = "length" if completion.truncated else "stop"
    message = {"role": "assistant", "content": completion.text}
    return {"message": message, "logprobs": told, "done_reason": reason, "done": True}


def _log(share: float) -> float:
    return math.log(max(share, 1e-30))


@contextmanager
def answering(path: Path, unavailable_every: int) -> Iterator[str]:
    """Run the server on recorded answers; yield its HOST:PORT. Raises ObserverError when it does not start."""
    command = [sys.executable, "-m", "tests.trust.load.server", str(path), str(unavailable_every)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            timer = threading.Timer(_START_S, process.kill)
            timer.start()
            address = process.stdout.readline().strip()
            timer.cancel()
            if not address:
                raise ObserverError(f"the loopback server did not start within {_START_S:.0f} s")
            yield address
        finally:
            process.kill()


class _Answers:
    """What is sent to each prompt, but for every `unavailable_every`-th."""

    def __init__(self, answers: dict[str, dict[str, Any]], unavailable_every: int) -> None:
        self.bodies = {
            with_cue(Task(task), prompt): json.dumps(answer).encode()
            for task, of_task in answers.items()
            for prompt, answer in of_task.items()
        }
        self.unavailable_every = unavailable_every
        self._numbers = itertools.count(1)  # `next` is one step of the interpreter: no thread gets another's

    def send(self, asked: Asked) -> Sent:
        prompt = asked.json()["messages"][-1]["content"]
        if self.unavailable_every and next(self._numbers) % self.unavailable_every == 0:
            return Sent({"error": "server busy, please try again"}, 503)
        return Sent(self.bodies[prompt])


if __name__ == "__main__":
    recorded, refused_every = sys.argv[1:]
    answers = _Answers(json.loads(Path(recorded).read_text(encoding="utf-8")), int(refused_every))
    with Loopback(answers.send) as server:
        print(server.host, flush=True)
        server.serve_forever()
