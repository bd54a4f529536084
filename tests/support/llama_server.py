"""Stands in for llama.cpp's server over HTTP: the same flags and paths, answered by our engine a request at a time."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from observer.engine.engine import Engine
from observer.engine.grammar import Grammar
from observer.prompts import CUES, Task
from tests.support.loopback import Asked, Loopback, Sent


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--model", "--host"):
        parser.add_argument(flag, required=True)
    for flag in ("--port", "--parallel", "--ctx-size", "--threads", "--threads-batch", "--cache-ram"):
        parser.add_argument(flag, type=int, required=True)
    args = parser.parse_args()
    engine, lock = Engine(Path(args.model), n_threads=args.threads), threading.Lock()

    def answer(asked: Asked) -> Sent:
        if asked.method == "GET":
            return Sent({"status": "ok"})
        request = asked.json()
        task = next(task for task in Task if f"\n{CUES[task]}<|im_end|>" in request["prompt"])
        exchange = (
            request["prompt"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0].removesuffix(f"\n{CUES[task]}")
        )
        with lock:
            grammar = Grammar(engine.model, request["grammar"]) if "grammar" in request else None
            (found,) = engine.generate(task, [exchange], grammar=grammar, max_new_tokens=request["n_predict"])
        return Sent({"content": found.text, "tokens_predicted": found.n_tokens})

    Loopback(answer, args.host, args.port).serve_forever()


if __name__ == "__main__":
    main()
