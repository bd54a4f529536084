"""What a quantization costs: its next-token distributions beside those of a reference, over the gold answers.

Names and figures are those of llama.cpp's `--kl-divergence`, with shares instead of percent. Both models read the
same rows in the same batches, since logits move with the shape of a batch; side by side, so that memory holds one
decode call's logits whatever the vocabulary. Read: prompts and gold answers. Scored: every position that predicts a
token of the answer, its end included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax

from observer.engine.llama_context import BatchToken, LlamaContext, Logits
from observer.engine.llama_model import LlamaModel, n_common, usable_cores
from observer.errors import ObserverError, raise_all
from observer.observation import Progress, no_progress
from observer.prompts import IM_END, Task, exchange_of, render_prompt
from observer.weights.gguf_header import read_header

_BATCH_TOKENS = 2048
_BATCH_ROWS = 64
_CELLS_STEP = 256


@dataclass(frozen=True)
class Quality:
    """A model against its reference over `n_tokens` tokens of gold answers.

    `ppl_ratio` is ppl / ppl_base. KL divergences are in nats, of the model from the base, over the whole vocabulary.
    `same_top_p` is the share of positions with the same likeliest token, `rms_delta_p` the root mean square of the
    change in the gold token's probability.
    """

    n_tokens: int
    ppl: float
    ppl_base: float
    ppl_ratio: float
    mean_kld: float
    max_kld: float
    kld_p50: float
    kld_p90: float
    kld_p99: float
    kld_p99_9: float
    same_top_p: float
    rms_delta_p: float


@dataclass(frozen=True)
class TokenRow:
    """A prompt, and its gold answer with the end token."""

    prompt: list[int]
    answer: list[int]

    @property
    def read(self) -> list[int]:
        """What a model reads; the end token is only predicted."""
        return [*self.prompt, *self.answer[:-1]]


@dataclass(frozen=True)
class Batch:
    """Rows decoded together after their common beginning; `gold` has the token for each wanted logits."""

    tokens: list[BatchToken]
    gold: list[int]
    n_rows: int


class Position(NamedTuple):
    """One prediction of a gold token by both."""

    kld: float
    logprob_base: float
    logprob: float
    has_same_top: bool


def measure_quality(
    reference: Path,
    model: Path,
    rows: Sequence[dict[str, Any]],
    *,
    n_threads: int | None = None,
    progress: Progress = no_progress,
) -> Quality:
    """Compare `model` with `reference` on lines of a split file; `progress` counts batches.

    Raises ObserverError for files that cannot be loaded, differing vocabularies, no rows, or rows too long.
    """
    if not rows:
        raise ObserverError("no rows to compare the models on; name a split that has some")
    check_same_vocabulary(reference, model)
    with ExitStack() as stack:
        models = [stack.enter_context(closing(LlamaModel(path))) for path in (reference, model)]
        token_rows = [tokenize_row(models[0], row) for row in rows]
        _check_lengths(models, rows, token_rows)
        batches = plan_batches(token_rows)
        n_ctx = -(-max(len(batch.tokens) for batch in batches) // _CELLS_STEP) * _CELLS_STEP
        contexts = [
            stack.enter_context(
                closing(LlamaContext(part, n_ctx=n_ctx, n_seq_max=_BATCH_ROWS, n_threads=n_threads or usable_cores()))
            )
            for part in models
        ]
        found: list[Position] = []
        for n_done, batch in enumerate(batches, 1):
            found += compare_batch(contexts[0], contexts[1], batch)
            progress(n_done, len(batches))
    return summarize(found)


def check_same_vocabulary(reference: Path, model: Path) -> None:
    """Raise ObserverError unless the same ids mean the same text in both."""
    key = "tokenizer.ggml.tokens"
    base, other = (read_header(path).metadata.get(key, []) for path in (reference, model))
    if base != other:
        raise ObserverError(
            f"{model}: its vocabulary ({len(other):,} tokens) is not that of {reference} ({len(base):,}), from token "
            f"{n_common(base, other):,} on; only models of one vocabulary compare: name the file it was quantized from"
        )


def tokenize_row(model: LlamaModel, row: dict[str, Any]) -> TokenRow:
    prompt = render_prompt(Task(row["task"]), exchange_of(row))
    return TokenRow(model.tokenize(prompt), model.tokenize(row["completion"][0]["content"] + IM_END))


def plan_batches(rows: Sequence[TokenRow]) -> list[Batch]:
    """Rows of like beginnings together. The plan depends on the rows alone, not on a model."""
    groups: list[list[TokenRow]] = []
    n_tokens = 0
    for row in sorted(rows, key=lambda row: row.prompt):
        n_tokens += len(row.read)
        if not groups or n_tokens > _BATCH_TOKENS or len(groups[-1]) == _BATCH_ROWS:
            groups.append([])
            n_tokens = len(row.read)
        groups[-1].append(row)
    return [_make_batch(group) for group in groups]


def _make_batch(rows: Sequence[TokenRow]) -> Batch:
    first, last = rows[0].prompt, rows[-1].prompt
    shared = min(n_common(first, last), len(first) - 1)  # of sorted rows, what the outer two share, all do
    everyone = tuple(range(len(rows)))
    tokens = [BatchToken(token, place, everyone) for place, token in enumerate(first[:shared])]
    for sequence, row in enumerate(rows):
        own = enumerate(row.read[shared:], shared)
        tokens += [BatchToken(token, place, (sequence,), place >= len(row.prompt) - 1) for place, token in own]
    return Batch(tokens, [token for row in rows for token in row.answer], len(rows))


def compare_batch(base: LlamaContext, other: LlamaContext, batch: Batch) -> Iterator[Position]:
    """Each wanted position of the batch, both contexts a decode call at a time."""
    for (_, base_logits), (_, logits), token in zip(
        base.decode(batch.tokens), other.decode(batch.tokens), batch.gold, strict=True
    ):
        yield compare_position(base_logits, logits, token)
    for sequence in range(batch.n_rows):
        base.clear(sequence)
        other.clear(sequence)


def compare_position(base_logits: Logits, logits: Logits, token: int) -> Position:
    """Log-softmax and divergence in float64."""
    base, other = (log_softmax(values.astype(np.float64)) for values in (base_logits, logits))
    kld = float(np.exp(base) @ (base - other))
    return Position(kld, float(base[token]), float(other[token]), bool(base.argmax() == other.argmax()))


def summarize(positions: Sequence[Position]) -> Quality:
    """The figures over all positions of all rows. Raises ObserverError where a model's logits are not finite."""
    kld, base, other, has_same_top = np.array(positions).T
    if not np.isfinite(kld).all():
        raise ObserverError("logits that are not finite: one of the two files is damaged; export or download it again")
    p50, p90, p99, p99_9 = map(float, np.percentile(kld, [50, 90, 99, 99.9]))
    ppl, ppl_base = float(np.exp(-other.mean())), float(np.exp(-base.mean()))
    return Quality(
        n_tokens=len(positions),
        ppl=ppl,
        ppl_base=ppl_base,
        ppl_ratio=ppl / ppl_base,
        mean_kld=float(kld.mean()),
        max_kld=float(kld.max()),
        kld_p50=p50,
        kld_p90=p90,
        kld_p99=p99,
        kld_p99_9=p99_9,
        same_top_p=float(has_same_top.mean()),
        rms_delta_p=float(np.sqrt(np.mean((np.exp(other) - np.exp(base)) ** 2))),
    )


def _check_lengths(
    models: Sequence[LlamaModel], rows: Sequence[dict[str, Any]], token_rows: Sequence[TokenRow]
) -> None:
    room = min(model.n_ctx_train for model in models)
    raise_all(
        [
            f"row {row.get('id', number)}: {len(tokens.read):,} tokens of prompt and answer, the models' context has "
            f"{room:,}; shorten the row or leave it out"
            for number, (row, tokens) in enumerate(zip(rows, token_rows, strict=True))
            if len(tokens.read) > room
        ]
    )
