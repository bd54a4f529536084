"""The engine of another checkout of this repository, asked today's prompts; `observing --beside CHECKOUT` starts it.

Run by its path with the checkout as working directory, so that `observer` is the one there. Its argument, in JSON, has
the model, its threads and the words of the prompts. A line of input is a list of rendered exchanges, that of the answer
one of [label, text, whether it was cut] each, without text where nothing is extracted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from observer import prompts

try:
    from observer.engine.engine import Engine
except ImportError:  # a module, before it was a package
    from observer.engine import Engine  # type: ignore[no-redef]

N_CTX = 2048


def main() -> None:
    """Answer until the input ends."""
    asked = json.loads(sys.argv[1])
    system = {"role": "system", "content": asked["system"]}
    prompts.prompt_messages = lambda task, exchange, _examples=(): [
        system,
        {"role": "user", "content": f"{exchange}\n{asked['cues'][task]}"},
    ]
    with Engine(Path(asked["model"]), n_ctx_per_row=N_CTX, n_threads=asked["n_threads"]) as engine:
        for line in sys.stdin:
            exchanges = json.loads(line)
            labels = [str(grade.label) for grade in engine.grade(exchanges)]
            kept = [number for number, label in enumerate(labels) if label != "DISCARD"]
            texts = dict(zip(kept, engine.extract([exchanges[number] for number in kept]), strict=True))
            answers = [
                [label, texts[number].text, texts[number].truncated] if number in texts else [label, None, False]
                for number, label in enumerate(labels)
            ]
            print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
