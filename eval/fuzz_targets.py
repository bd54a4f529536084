"""The parsers of outside input that are fuzzed, each with inputs to start from.

    python eval/fuzz.py --replay TARGET FILE

Add a target here: a function in `fuzz_texts`, `fuzz_answers`, `fuzz_files` or `fuzz_models`, and its seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval import fuzz_answers, fuzz_files, fuzz_model_seeds, fuzz_models, fuzz_seeds, fuzz_texts
from eval.fuzz_bounds import MAX_START_BYTES
from observer.errors import ObserverError
from observer.paths import PROJECT_ROOT

REGRESSIONS = PROJECT_ROOT / "tests" / "fuzz_corpus"
"""Every input that once broke a target, in a folder of the target's name."""


@dataclass(frozen=True)
class Target:
    """`run` takes any bytes and raises when something is wrong; `seeds` are sound or nearly sound inputs."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]

    def start(self) -> list[bytes]:
        """The seeds, then what once broke the target; those that are small, so that many are tried."""
        return [data for data in [*self.seeds(), *self.regressions().values()] if len(data) <= MAX_START_BYTES]

    def warm_up(self) -> None:
        """Let it import what it needs, which is no input's fault."""
        self.run(self.seeds()[0])

    def regressions(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted((REGRESSIONS / self.name).glob("*"))}


TARGETS = {
    run.__name__: Target(run.__name__, run, seeds)
    for run, seeds in (
        (fuzz_files.configs, fuzz_seeds.configs),
        (fuzz_files.rows, fuzz_seeds.rows),
        (fuzz_texts.chats, fuzz_seeds.chats),
        (fuzz_files.observe_inputs, fuzz_seeds.chats),
        (fuzz_texts.turns, fuzz_seeds.turns),
        (fuzz_texts.prompts, fuzz_seeds.messages),
        (fuzz_texts.redaction, fuzz_seeds.messages),
        (fuzz_answers.answers, fuzz_seeds.answers),
        (fuzz_answers.observing, fuzz_seeds.observed),
        (fuzz_texts.times, fuzz_seeds.times),
        (fuzz_answers.observations, fuzz_seeds.observations),
        (fuzz_files.observation_ledgers, fuzz_seeds.observations),
        (fuzz_files.label_ledgers, fuzz_seeds.label_ledgers),
        (fuzz_files.memories, fuzz_seeds.memories),
        (fuzz_files.manifests, fuzz_seeds.manifests),
        (fuzz_files.saved_answers, fuzz_seeds.saved_answers),
        (fuzz_answers.ollama_answers, fuzz_seeds.ollama_answers),
        (fuzz_texts.modelfiles, fuzz_seeds.modelfiles),
        (fuzz_models.gguf_files, fuzz_model_seeds.gguf_files),
        (fuzz_models.checkpoints, fuzz_model_seeds.checkpoints),
        (fuzz_models.tokenizers, fuzz_model_seeds.tokenizers),
        (fuzz_models.adapters, fuzz_model_seeds.adapters),
    )
}


def targets_named(names: list[str]) -> list[Target]:
    """These targets, or all. Raises ObserverError naming every unknown one."""
    if unknown := [name for name in names if name not in TARGETS]:
        raise ObserverError(f"--targets {', '.join(unknown)}: no such target; known: {', '.join(TARGETS)}")
    return [TARGETS[name] for name in names] if names else list(TARGETS.values())
