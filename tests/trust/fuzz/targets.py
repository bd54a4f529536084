"""The parsers of outside input that are fuzzed, each with inputs to start from.

Add a target here: a function in `texts`, `answers`, `files` or `models`, and its seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.trust.fuzz import answers, files, model_seeds, models, seeds, texts
from tests.trust.fuzz.bounds import MAX_START_BYTES

REGRESSIONS = Path(__file__).with_name("corpus")
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
        (files.configs, seeds.configs),
        (files.rows, seeds.rows),
        (texts.chats, seeds.chats),
        (files.observe_inputs, seeds.chats),
        (texts.turns, seeds.turns),
        (texts.prompts, seeds.messages),
        (texts.redaction, seeds.messages),
        (answers.answers, seeds.answers),
        (answers.observing, seeds.observed),
        (texts.times, seeds.times),
        (answers.observations, seeds.observations),
        (files.observation_ledgers, seeds.observations),
        (files.label_ledgers, seeds.label_ledgers),
        (files.memories, seeds.memories),
        (files.manifests, seeds.manifests),
        (files.saved_answers, seeds.saved_answers),
        (answers.ollama_answers, seeds.ollama_answers),
        (models.gguf_files, model_seeds.gguf_files),
        (models.checkpoints, model_seeds.checkpoints),
        (models.tokenizers, model_seeds.tokenizers),
        (models.adapters, model_seeds.adapters),
    )
}
