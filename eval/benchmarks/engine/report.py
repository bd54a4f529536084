"""What the engine's benchmark found: rounds to standings, standings to JSON and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.benchmarks.engine.engines import TITLES, as_json, as_label
from eval.benchmarks.harness import Record, did_not_run, rounds_of
from eval.metrics.spread import Spread, ratios, spread
from eval.reports.tables import table
from observer.prompts import Task

OURS = "ours"
FLOOR_COLUMNS = ("task", "tokens decoded", "with logits", "TFLOP", "machine's GFLOP/s", "floor s", "engine s", "share")


@dataclass(frozen=True)
class ModelSize:
    """Weights that every token is multiplied with, and those of the head, which only scored tokens meet."""

    body: int
    head: int

    def flops(self, n_decoded: int, n_outputs: int) -> int:
        """Of the matrix multiplications with weights: two a weight and token. Attention comes on top."""
        return 2 * (self.body * n_decoded + self.head * n_outputs)


@dataclass(frozen=True)
class Standing:
    """One contestant on one task. `ratio` is the engine's examples/s over this one's in the same round.

    `agreement` is the share of rows with the engine's own answer: the same label, or the same JSON. `n_written` are
    tokens of answers in a round; the engine scores labels and writes none.
    """

    name: str
    task: str
    examples_per_s: Spread
    ratio: Spread
    agreement: float
    n_written: int


@dataclass(frozen=True)
class Floor:
    """The engine's seconds beside what its multiplications would take at the machine's own rate, medians of the rounds.

    The rate is that of float32 matrices in torch, measured before each round; quantized weights are multiplied as
    integers and may pass it, in which case `share` is above 1.
    """

    task: str
    n_decoded: int
    n_outputs: int
    tflop: float
    gflop_per_s: float
    floor_s: float
    engine_s: float
    share: float


def standings(records: Sequence[Record], n_rows: dict[str, int]) -> list[Standing]:
    """Every contestant with rounds on record, by task."""
    names = [name for name in TITLES if rounds_of(name, records)]
    return [_standing(name, task, records, n_rows[task]) for task in Task for name in names if n_rows[task]]


def floors(records: Sequence[Record], size: ModelSize) -> list[Floor]:
    mine = list(rounds_of(OURS, records).values())
    return [_floor(task, mine, size) for task in Task if mine and mine[0]["seconds"][task]]


def sections(
    found: Sequence[Standing], under: Sequence[Floor], calls: Mapping[int, float], failed: Mapping[str, str]
) -> list[str]:
    """The report below its facts; `calls` are milliseconds by tokens, `failed` the contestants that did not run."""
    used = dict.fromkeys(standing.name for standing in found)
    parts = list[str]()
    for task in Task:
        rows = [_row(standing) for standing in found if standing.task == task]
        header = ["contestant", "examples/s", "the engine's, to this", "answers as the engine's", "tokens written"]
        parts += [f"## {'Grading' if task is Task.GRADE else 'Extraction'}", table(header, rows)]
    return [
        *parts,
        "Min / median / max over interleaved rounds; a ratio pairs the two of one round.",
        "## Where the time goes",
        table(FLOOR_COLUMNS, [_floor_row(floor) for floor in under]),
        "The floor is the multiplications with weights of the tokens the engine truly decoded, at the rate of float32 "
        "matrices in torch on the same cores, measured before each round. Quantized weights are multiplied as integers "
        "and may pass it. Above the floor: attention, unpacking of weights, sampling, the interpreter.",
        "A decode call of the engine's, by its tokens, each of which wants logits. Drafted tokens pay where a further "
        "token costs much less than a call of its own:",
        table(
            ["tokens", *map(str, calls)],
            [
                ["ms", *(f"{ms:.1f}" for ms in calls.values())],
                ["ms a token", *(f"{ms / n:.1f}" for n, ms in calls.items())],
            ],
        ),
        "## Contestants",
        "\n".join(f"- `{name}`: {TITLES[name]}" for name in used),
        *did_not_run(failed),
    ]


def summary(found: Sequence[Standing]) -> dict[str, Any]:
    """The last line of stdout: medians."""
    return {
        str(task): {
            s.name: {"examples_per_s": round(s.examples_per_s.median, 2), "ratio": round(s.ratio.median, 2)}
            for s in found
            if s.task == task
        }
        for task in Task
    }


def _standing(name: str, task: Task, records: Sequence[Record], n_rows: int) -> Standing:
    rounds, ours = rounds_of(name, records), rounds_of(OURS, records)
    speeds = spread(n_rows / r["seconds"][task] for r in rounds.values())
    paired = ratios(*({n: r["seconds"][task] for n, r in one.items()} for one in (rounds, ours)))
    assert speeds and paired
    first = next(iter(rounds.values()))
    read = as_label if task is Task.GRADE else as_json
    pairs = zip(first["answers"][task], next(iter(ours.values()))["answers"][task], strict=True)
    agreement = statistics.mean(read(one) == read(other) for one, other in pairs)
    return Standing(name, task, speeds, paired, agreement, first["n_written"][task])


def _floor(task: Task, rounds: Sequence[Record], size: ModelSize) -> Floor:
    n_decoded, n_outputs = rounds[-1]["work"][task]
    flops = size.flops(n_decoded, n_outputs)
    seconds = statistics.median(r["seconds"][task] for r in rounds)
    rate = statistics.median(r["gflop_per_s"] for r in rounds)
    floor_s = flops / (rate * 1e9)
    return Floor(task, n_decoded, n_outputs, flops / 1e12, rate, floor_s, seconds, floor_s / seconds)


def _row(s: Standing) -> list[str]:
    written = f"{s.n_written:,}" if s.n_written else "none: labels are scored"
    return [s.name, s.examples_per_s.show(1), s.ratio.show(2), f"{s.agreement:.1%}", written]


def _floor_row(f: Floor) -> list[str]:
    return [
        f.task, f"{f.n_decoded:,}", f"{f.n_outputs:,}", f"{f.tflop:.3f}", f"{f.gflop_per_s:,.0f}", f"{f.floor_s:.2f}",
        f"{f.engine_s:.2f}", f"{f.share:.0%}",
    ]  # fmt: skip
