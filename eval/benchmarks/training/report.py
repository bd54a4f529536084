"""What the training benchmark found: records of rounds to standings, standings to JSON and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.benchmarks.harness import Record, did_not_run, failures, rounds_of
from eval.benchmarks.training.trainers import Entrant
from eval.metrics.spread import Spread, ratios, spread
from eval.reports.tables import table

REFERENCES = ("trl", "unsloth")
"""Ratios are taken to these."""


@dataclass(frozen=True)
class Standing:
    """One contestant's figures. `ratios` are real tokens/s over those of a reference in the same round.

    `start` is what the child said of its start: seconds, the probe, and the held-out NLL before training. `cpu_seconds`
    of all threads show whether something else had the cores. `rows` of a round must be the benchmark's rows times its
    epochs; `error` says why there are no figures.
    """

    entrant: Entrant
    error: str | None
    n_rounds: int
    seconds: Spread | None
    cpu_seconds: Spread | None
    tokens_per_s: Spread | None
    ratios: dict[str, Spread]
    steps: int | None
    rows: int | None
    peak_bytes: int | None
    start: dict[str, float]
    nll_after: float | None

    @property
    def label(self) -> str:
        return self.entrant.label


def standings(entrants: Sequence[Entrant], records: Sequence[Record], tokens: int) -> list[Standing]:
    """Every entrant's figures; `tokens` are the real ones of a round: the rows' own, times the epochs."""
    return [_standing(entrant, records, tokens) for entrant in entrants]


def _standing(entrant: Entrant, records: Sequence[Record], tokens: int) -> Standing:
    label, rounds = entrant.label, list(rounds_of(entrant.label, records).values())
    told = {record["kind"]: record for record in records if record["entrant"] == label}
    speeds = {name: _speeds(name, records, tokens) for name in (label, *REFERENCES)}
    paired = {reference: ratios(speeds[label], speeds[reference]) for reference in REFERENCES}
    return Standing(
        entrant=entrant,
        error=failures(records).get(label),
        n_rounds=len(rounds),
        seconds=spread(record["seconds"] for record in rounds),
        cpu_seconds=spread(record["cpu_seconds"] for record in rounds),
        tokens_per_s=spread(speeds[label].values()),
        ratios={reference: ratio for reference, ratio in paired.items() if ratio},
        steps=rounds[0]["steps"] if rounds else None,
        rows=rounds[0]["rows"] if rounds else None,
        peak_bytes=max((record["peak_bytes"] for record in rounds if record["peak_bytes"] is not None), default=None),
        start={name: value for name, value in told.get("start", {}).items() if name not in ("kind", "entrant")},
        nll_after=told.get("nll", {}).get("nll"),
    )


def _speeds(label: str, records: Sequence[Record], tokens: int) -> dict[int, float]:
    return {number: tokens / record["seconds"] for number, record in rounds_of(label, records).items()}


def summary(found: Sequence[Standing]) -> dict[str, Any]:
    """The last line of stdout: medians."""
    done = [standing for standing in found if standing.tokens_per_s]
    return {
        "tokens_per_s": {s.label: round(s.tokens_per_s.median, 1) for s in done if s.tokens_per_s},
        "ratios": {s.label: {name: round(ratio.median, 3) for name, ratio in s.ratios.items()} for s in done},
        "nll_after": {s.label: s.nll_after for s in done},
        "failed": {s.label: s.error for s in found if s.error},
    }


def sections(found: Sequence[Standing], expected_rows: int) -> list[str]:
    """The report below its facts; `expected_rows` are those of a round."""
    done = [standing for standing in found if standing.tokens_per_s]
    return [
        "## Speed and memory",
        "Min / median / max over the interleaved rounds, all warm; ratios pair the rounds of one turn. "
        "CPU seconds are those of all threads: where they are far below cores times seconds, the machine was shared.",
        _speed_table(done),
        "## The same work",
        "The probe is one batch of the same rows, forward and backward, through each trainer from the same adapter (B "
        "away from zero): its loss and gradient norm, with the difference from the first row. Held-out NLL is the "
        "token mean over completions, computed a row at a time by the model's own forward in every contestant.",
        _work_table(done, expected_rows),
        "## Cold",
        "Seconds before the first warm round, in a fresh process: imports, loading and setting up, first step.",
        _cold_table(done),
        "## Contestants",
        "\n".join(f"- `{s.label}`: {s.entrant.contestant.title}. {s.entrant.contestant.note}." for s in found),
        *did_not_run({s.label: s.error for s in found if s.error}),
    ]


def _speed_table(done: Sequence[Standing]) -> str:
    header = ["contestant", "rows a step", "steps", "s a round", "CPU s a round", "real tokens/s"]
    header += [f"x {reference}" for reference in REFERENCES] + ["peak GB"]
    rows = []
    for s in done:
        assert s.seconds and s.tokens_per_s
        paired = [s.ratios[name].show(2) if name in s.ratios else "" for name in REFERENCES]
        peak = f"{s.peak_bytes / 1e9:.2f}" if s.peak_bytes is not None else ""
        cpu = s.cpu_seconds.show(2) if s.cpu_seconds else ""
        work = [s.label, str(s.entrant.batch_size), str(s.steps)]
        rows.append([*work, s.seconds.show(2), cpu, s.tokens_per_s.show(), *paired, peak])
    return table(header, rows)


def _work_table(done: Sequence[Standing], expected_rows: int) -> str:
    header = ["contestant", "rows trained", "probe loss", "probe gradient norm", "NLL before", "NLL after"]
    reference = next((s for s in done if s.entrant.contestant.scored == "completion"), None)
    rows = []
    for s in done:
        trained = f"{s.rows:,}" + ("" if s.rows == expected_rows else f" (of {expected_rows:,}!)")
        losses = [_against(reference, name, s) for name in ("probe_loss", "probe_grad_norm")]
        nll = ["" if value is None else f"{value:.4f}" for value in (s.start.get("nll_before"), s.nll_after)]
        rows.append([s.label, trained, *losses, *nll])
    return table(header, rows)


def _against(reference: Standing | None, name: str, standing: Standing) -> str:
    value, other = standing.start.get(name), reference and reference.start.get(name)
    if value is None:
        return ""
    if standing.entrant.contestant.scored != "completion":
        return f"{value:.4f} (another loss)"
    return f"{value:.4f}" if standing is reference or not other else f"{value:.4f} ({100 * (value / other - 1):+.3f} %)"


def _cold_table(done: Sequence[Standing]) -> str:
    names = ("import_s", "load_s", "first_step_s")
    header = ["contestant", "imports", "loading", "first step"]
    return table(header, [[s.label, *(f"{s.start.get(name, 0):.1f}" for name in names)] for s in done])
