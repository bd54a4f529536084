"""Stands in for llama.cpp's server over HTTP: the same flags and paths, answered by our engine a request at a time."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from observer.engine.engine import Engine
from observer.engine.grammar import Grammar
from observer.prompts import CUES, Task


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--model", "--host"):
        parser.add_argument(flag, required=True)
    for flag in ("--port", "--parallel", "--ctx-size", "--threads", "--threads-batch", "--cache-ram"):
        parser.add_argument(flag, type=int, required=True)
    args = parser.parse_args()
    engine, lock = Engine(Path(args.model), n_threads=args.threads), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply({"status": "ok"})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            task = next(task for task in Task if f"\n{CUES[task]}<|im_end|>" in request["prompt"])
            exchange = (
                request["prompt"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0].removesuffix(f"\n{CUES[task]}")
            )
            with lock:
                grammar = Grammar(engine.model, request["grammar"]) if "grammar" in request else None
                (answer,) = engine.generate(task, [exchange], grammar=grammar, max_new_tokens=request["n_predict"])
            self.reply({"content": answer.text, "tokens_predicted": answer.n_tokens})

        def reply(self, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer((args.host, args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
