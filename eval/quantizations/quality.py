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
from typing import TYPE_CHECKING, Any

import numpy as np

from observer.errors import ObserverError, raise_all
from observer.observation import Progress, no_progress
from observer.prompts import IM_END, Task, exchange_of, render_prompt

if TYPE_CHECKING:
    from observer.engine.llama_context import BatchToken, LlamaContext, Logits
    from observer.engine.llama_model import LlamaModel

_BATCH_TOKENS = 2048
_BATCH_ROWS = 64
_CELLS_STEP = 256


@dataclass(frozen=True)
class Quality:
    """A model against its reference over `n_tokens` tokens of gold answers.

    `ppl_ratio` is ppl / ppl_base. KL divergences are in nats, of the model from the base, over the whole vocabulary.
    `same_top_p` is the share of positions with the same likeliest token, `rms_delta_p` the root mean square of the
    change in the gold token's probability. `kld_of_rows` has the mean divergence of each row, in the order given.
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
    kld_of_rows: tuple[float, ...]


@dataclass(frozen=True)
class TokenRow:
    """A prompt, and its gold answer with the end token."""

    prompt: list[int]
    answer: list[int]

    @property
    def read(self) -> list[int]:
        """What a model reads; the end token is only predicted."""
        return [*self.prompt, *self.answer[:-1]]


@dataclass
class Batch:
    """Rows decoded together after their common beginning; `gold` names row and token for each wanted logits."""

    tokens: list[BatchToken]
    gold: list[tuple[int, int]]
    n_rows: int


@dataclass(frozen=True)
class Position:
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
    from observer.engine.llama_context import LlamaContext
    from observer.engine.llama_model import LlamaModel, usable_cores

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
        found: list[list[Position]] = [[] for _ in rows]
        for n_done, batch in enumerate(batches, 1):
            for row, position in compare_batch(contexts[0], contexts[1], batch):
                found[row].append(position)
            progress(n_done, len(batches))
    return summarize(found)


def check_same_vocabulary(reference: Path, model: Path) -> None:
    """Raise ObserverError unless the same ids mean the same text in both."""
    from observer.engine.llama_model import n_common
    from observer.weights.gguf_header import read_header

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
    groups: list[list[int]] = []
    n_tokens = 0
    for index in sorted(range(len(rows)), key=lambda index: (rows[index].prompt, index)):
        n_tokens += len(rows[index].read)
        if not groups or n_tokens > _BATCH_TOKENS or len(groups[-1]) == _BATCH_ROWS:
            groups.append([])
            n_tokens = len(rows[index].read)
        groups[-1].append(index)
    return [_make_batch(rows, group) for group in groups]


def _make_batch(rows: Sequence[TokenRow], group: Sequence[int]) -> Batch:
    from observer.engine.llama_context import BatchToken
    from observer.engine.llama_model import n_common

    first, last = rows[group[0]].prompt, rows[group[-1]].prompt
    shared = min(n_common(first, last), len(first) - 1)  # of sorted rows, what the outer two share, all do
    everyone = tuple(range(len(group)))
    batch = Batch([BatchToken(token, place, everyone) for place, token in enumerate(first[:shared])], [], len(group))
    for sequence, index in enumerate(group):
        _add_row(batch, rows[index], index, sequence, shared)
    return batch


def _add_row(batch: Batch, row: TokenRow, index: int, sequence: int, shared: int) -> None:
    from observer.engine.llama_context import BatchToken

    first_prediction = len(row.prompt) - 1
    tokens = enumerate(row.read[shared:], shared)
    batch.tokens += [BatchToken(token, place, (sequence,), place >= first_prediction) for place, token in tokens]
    batch.gold += [(index, token) for token in row.answer]


def compare_batch(base: LlamaContext, other: LlamaContext, batch: Batch) -> Iterator[tuple[int, Position]]:
    """Each wanted position of the batch with its row, both contexts a decode call at a time."""
    pairs = zip(base.decode(batch.tokens), other.decode(batch.tokens), batch.gold, strict=True)
    for (_, base_logits), (_, logits), (row, token) in pairs:
        yield row, compare_position(base_logits, logits, token)
    for sequence in range(batch.n_rows):
        base.clear(sequence)
        other.clear(sequence)


def compare_position(base_logits: Logits, logits: Logits, token: int) -> Position:
    """Log-softmax and divergence in float64."""
    from scipy.special import log_softmax

    base, other = (log_softmax(values.astype(np.float64)) for values in (base_logits, logits))
    kld = float(np.exp(base) @ (base - other))
    return Position(kld, float(base[token]), float(other[token]), bool(base.argmax() == other.argmax()))


def summarize(found: Sequence[Sequence[Position]]) -> Quality:
    """The figures over all positions of all rows. Raises ObserverError where a model's logits are not finite."""
    positions = [position for row in found for position in row]
    kld = np.array([position.kld for position in positions])
    if not np.isfinite(kld).all():
        raise ObserverError("logits that are not finite: one of the two files is damaged; export or download it again")
    base = np.array([position.logprob_base for position in positions])
    other = np.array([position.logprob for position in positions])
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
        same_top_p=float(np.mean([position.has_same_top for position in positions])),
        rms_delta_p=float(np.sqrt(np.mean((np.exp(other) - np.exp(base)) ** 2))),
        kld_of_rows=tuple(float(np.mean([position.kld for position in row])) for row in found),
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
