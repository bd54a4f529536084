"""Who is compared: what a name on the command line stands for, and its answers, which are kept and asked for once."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.answers.answering import SAVED_SUFFIX, Answers, answer_rows, describe_model, load_answers, save_answers
from eval.answers.origin import code_hash, file_name
from eval.answers.rows import Row
from observer.backends.opening import best_gguf, open_backend
from observer.errors import ObserverError, raise_all
from observer.files import sha256_file
from observer.prompts import Examples
from observer.runs.manifest import environment

_FEW_SHOT = re.compile(r"(?P<source>.+)\+few(?P<n>\d+)")


@dataclass(frozen=True)
class Contestant:
    """`spec` as given; `source` without `+fewN`, for `open_backend`, or the path of saved answers."""

    spec: str
    source: str
    n_examples: int = 0

    @property
    def is_saved(self) -> bool:
        return self.source.endswith(f".{SAVED_SUFFIX}")


def parse_contestant(spec: str) -> Contestant:
    """Raises ObserverError when examples are asked of saved answers."""
    match = _FEW_SHOT.fullmatch(spec)
    contestant = Contestant(spec, match["source"], int(match["n"])) if match else Contestant(spec, spec)
    if contestant.is_saved and match:
        raise ObserverError(f"{spec}: saved answers are given already; name them without +few{match['n']}")
    return contestant


def _weights_hash(contestant: Contestant) -> str:
    """What the answers depend on: the hash of the file or folder, or the server's digest of its model.

    Raises ObserverError when there is no such model, or no server.
    """
    kind, _, name = contestant.source.partition(":")
    if kind == "ollama" and name:
        from observer.backends.ollama import OllamaBackend

        with OllamaBackend(name) as backend:
            return backend.digest
    path = Path(name if kind == "hf" and name else contestant.source)
    if kind == "hf" or (path / "config.json").is_file():
        if not (path / "config.json").is_file():
            raise ObserverError(f"{path}: no folder of transformers weights (it has no config.json); check the path")
        return sha256_file(path)
    from observer.engine.llama_model import check_is_gguf

    file = best_gguf(path)
    check_is_gguf(file)
    return sha256_file(file)


def look_at(contestants: Sequence[Contestant]) -> tuple[dict[str, str], dict[str, Answers]]:
    """By spec: the hash of every model's weights, and what was saved. Raises ObserverError with all faults."""
    weights: dict[str, str] = {}
    saved: dict[str, Answers] = {}
    faults: list[str] = []
    for contestant in contestants:
        try:
            if contestant.is_saved:
                saved[contestant.spec] = _load_saved(contestant)
            else:
                weights[contestant.spec] = _weights_hash(contestant)
        except ObserverError as error:
            faults.append(str(error))
    raise_all(faults)
    asked = [contestant for contestant in contestants if not contestant.is_saved]
    for one, other in itertools.combinations(asked, 2):
        if (weights[one.spec], one.n_examples) == (weights[other.spec], other.n_examples):
            print(f"warning: {one.spec} and {other.spec} are the same weights under two names", file=sys.stderr)
    return weights, saved


def answers_path(folder: Path, contestant: Contestant, weights: str, rows: Sequence[Row], examples: Examples) -> Path:
    """Where its answers are kept: the name says which model, the key all that they depend on."""
    packages = environment()["packages"]
    runtimes = [packages["llama-cpp-python"], packages["transformers"]]
    code = code_hash("observer/backends", "observer/ollama", "eval/answers/answering.py")
    depends_on = json.dumps([weights, list(rows), dict(examples), runtimes, code], sort_keys=True, ensure_ascii=False)
    key = hashlib.sha256(depends_on.encode()).hexdigest()[:16]
    return folder / f"{slug(contestant.spec)}-{key}.{SAVED_SUFFIX}"


def answer_once(
    contestant: Contestant,
    path: Path,
    rows: Sequence[Row],
    split: str,
    examples: Examples,
    n_threads: int | None = None,
) -> Answers:
    """Its answers to `rows`: read from `path` if they are there, else asked for and written there."""
    if path.exists():
        print(f"{contestant.spec}: answered before, {path}", file=sys.stderr)
        return _named(load_answers(path), contestant)
    print(f"{contestant.spec}: {len(rows):,} rows to answer", file=sys.stderr)
    with open_backend(contestant.source, n_threads=n_threads, examples=examples) as backend:
        model = describe_model(backend, contestant.source)
        answers = answer_rows(backend, rows, split=split, model=model, n_unconstrained=0)
    save_answers(answers, path)
    return _named(answers, contestant)


def _load_saved(contestant: Contestant) -> Answers:
    """Raises ObserverError when the file is missing, faulty, or of a run that was cut short."""
    answers = load_answers(Path(contestant.source))
    if answers.unfinished:
        tasks = " and ".join(answers.unfinished)
        raise ObserverError(f"{contestant.source}: cut short, task {tasks} has no answers; evaluate the model again")
    return _named(answers, contestant)


def slug(spec: str) -> str:
    """A name for files: the last two parts of a spec, without what says little and what file systems dislike."""
    contestant = parse_contestant(spec)
    parts = Path(contestant.source.removeprefix("hf:")).parts[-2:]
    name = "-".join(part for part in parts if part not in ("outputs", "gguf", "/"))
    name = name.removesuffix(f".{SAVED_SUFFIX}").removesuffix(".gguf") + spec.removeprefix(contestant.source)
    return file_name(name)


def _named(answers: Answers, contestant: Contestant) -> Answers:
    """The answers of the model under the name that the user gave it."""
    return replace(answers, model=replace(answers.model, path=contestant.spec))
