"""What the training benchmark found: records of rounds to standings, standings to JSON, Markdown and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks.training.rounds import Record
from eval.benchmarks.training.trainers import Entrant
from eval.metrics.spread import Spread, spread
from eval.reports.tables import table
from observer.files import atomic_path

REFERENCES = ("trl", "unsloth")
"""Ratios are taken to these."""


@dataclass(frozen=True)
class Standing:
    """One contestant's figures. `ratios` are real tokens/s over those of a reference in the same round.

    Cold figures are seconds. `cpu_seconds` of all threads show whether something else had the cores. `rows` of a round
    must be the benchmark's rows times its epochs; `error` says why there are no figures.
    """

    label: str
    title: str
    note: str
    scored: str
    batch_size: int
    error: str | None
    n_rounds: int
    seconds: Spread | None
    cpu_seconds: Spread | None
    tokens_per_s: Spread | None
    ratios: dict[str, Spread]
    steps: int | None
    rows: int | None
    peak_bytes: int | None
    cold: dict[str, float]
    probe_loss: float | None
    probe_grad_norm: float | None
    nll_before: float | None
    nll_after: float | None


def standings(entrants: Sequence[Entrant], records: Sequence[Record], tokens: int) -> list[Standing]:
    """Every entrant's figures; `tokens` are the real ones of a round: the rows' own, times the epochs."""
    seconds = {entrant.label: _seconds(entrant.label, records) for entrant in entrants}
    return [_standing(entrant, records, tokens, seconds) for entrant in entrants]


def _standing(
    entrant: Entrant, records: Sequence[Record], tokens: int, seconds: dict[str, dict[int, float]]
) -> Standing:
    label, contestant = entrant.label, entrant.contestant
    mine = [record for record in records if record["entrant"] == label]
    rounds = [record for record in mine if record["kind"] == "round"]
    start = next((record for record in mine if record["kind"] == "start"), {})
    peaks = [record["peak_bytes"] for record in rounds if record["peak_bytes"] is not None]
    ratios = {reference: spread(_ratios(seconds[label], seconds.get(reference, {}))) for reference in REFERENCES}
    return Standing(
        label=label,
        title=contestant.title,
        note=contestant.note,
        scored=contestant.scored,
        batch_size=entrant.batch_size,
        error=next((record["error"] for record in mine if record["kind"] == "failed"), None),
        n_rounds=len(rounds),
        seconds=spread(seconds[label].values()),
        cpu_seconds=spread(record["cpu_seconds"] for record in rounds),
        tokens_per_s=spread(tokens / value for value in seconds[label].values()),
        ratios={reference: ratio for reference, ratio in ratios.items() if ratio},
        steps=rounds[0]["steps"] if rounds else None,
        rows=rounds[0]["rows"] if rounds else None,
        peak_bytes=max(peaks, default=None),
        cold={name: start[name] for name in ("import_s", "load_s", "first_step_s") if name in start},
        probe_loss=start.get("probe_loss"),
        probe_grad_norm=start.get("probe_grad_norm"),
        nll_before=start.get("nll_before"),
        nll_after=next((record["nll"] for record in mine if record["kind"] == "nll"), None),
    )


def _seconds(label: str, records: Sequence[Record]) -> dict[int, float]:
    return {r["round"]: r["seconds"] for r in records if r["kind"] == "round" and r["entrant"] == label}


def _ratios(mine: dict[int, float], reference: dict[int, float]) -> list[float]:
    return [reference[number] / mine[number] for number in sorted(mine.keys() & reference.keys())]


def as_json(head: dict[str, Any], found: Sequence[Standing]) -> dict[str, Any]:
    """All figures, for programs."""
    return head | {"contestants": [asdict(standing) for standing in found]}


def summary(found: Sequence[Standing]) -> dict[str, Any]:
    """The last line of stdout: medians."""
    done = [standing for standing in found if standing.tokens_per_s]
    return {
        "tokens_per_s": {s.label: round(s.tokens_per_s.median, 1) for s in done if s.tokens_per_s},
        "ratios": {s.label: {name: round(ratio.median, 3) for name, ratio in s.ratios.items()} for s in done},
        "nll_after": {s.label: s.nll_after for s in done},
        "failed": {s.label: s.error for s in found if s.error},
    }


def to_markdown(title: str, head: Sequence[str], found: Sequence[Standing], expected_rows: int, picture: str) -> str:
    """The report; `head` are its bullet points, `expected_rows` those of a round, `picture` a file beside it."""
    done = [standing for standing in found if standing.tokens_per_s]
    parts = [
        f"# {title}",
        "\n".join(f"- {line}" for line in head),
        "## Speed and memory",
        "Min / median / max over the interleaved rounds, all warm; ratios pair the rounds of one turn. "
        "CPU seconds are those of all threads: where they are far below cores times seconds, the machine was shared.",
        _speed_table(done),
        f"![real tokens a second]({picture})",
        "## The same work",
        "The probe is one batch of the same rows, forward and backward, through each trainer from the same adapter (B "
        "away from zero): its loss and gradient norm, with the difference from the first row. Held-out NLL is the "
        "token mean over completions, computed a row at a time by the model's own forward in every contestant.",
        _work_table(done, expected_rows),
        "## Cold",
        "Seconds before the first warm round, in a fresh process: imports, loading and setting up, first step.",
        _cold_table(done),
        "## Contestants",
        "\n".join(f"- `{s.label}`: {s.title}. {s.note}." for s in found),
    ]
    if failed := [standing for standing in found if standing.error]:
        parts += ["## Did not run", "\n".join(f"- `{s.label}`: {s.error}" for s in failed)]
    return "\n\n".join(parts) + "\n"


def _speed_table(done: Sequence[Standing]) -> str:
    header = ["contestant", "rows a step", "steps", "s a round", "CPU s a round", "real tokens/s"]
    header += [f"x {reference}" for reference in REFERENCES] + ["peak GB"]
    rows = []
    for s in done:
        assert s.seconds and s.tokens_per_s
        ratios = [s.ratios[name].show(2) if name in s.ratios else "" for name in REFERENCES]
        peak = f"{s.peak_bytes / 1e9:.2f}" if s.peak_bytes is not None else ""
        cpu = s.cpu_seconds.show(2) if s.cpu_seconds else ""
        rows.append(
            [s.label, str(s.batch_size), str(s.steps), s.seconds.show(2), cpu, s.tokens_per_s.show(), *ratios, peak]
        )
    return table(header, rows)


def _work_table(done: Sequence[Standing], expected_rows: int) -> str:
    header = ["contestant", "rows trained", "probe loss", "probe gradient norm", "NLL before", "NLL after"]
    reference = next((s for s in done if s.scored == "completion"), None)
    rows = []
    for s in done:
        trained = f"{s.rows:,}" + ("" if s.rows == expected_rows else f" (of {expected_rows:,}!)")
        losses = [_against(getattr(s, name), reference, name, s) for name in ("probe_loss", "probe_grad_norm")]
        nll = ["" if value is None else f"{value:.4f}" for value in (s.nll_before, s.nll_after)]
        rows.append([s.label, trained, *losses, *nll])
    return table(header, rows)


def _against(value: float | None, reference: Standing | None, name: str, standing: Standing) -> str:
    if value is None:
        return ""
    if standing.scored != "completion":
        return f"{value:.4f} (another loss)"
    other = getattr(reference, name)
    return f"{value:.4f}" if standing is reference or not other else f"{value:.4f} ({100 * (value / other - 1):+.3f} %)"


def _cold_table(done: Sequence[Standing]) -> str:
    names = ("import_s", "load_s", "first_step_s")
    header = ["contestant", "imports", "loading", "first step"]
    return table(header, [[s.label, *(f"{s.cold.get(name, 0):.1f}" for name in names)] for s in done])


def plot(title: str, found: Sequence[Standing], picture: Path) -> None:
    """Median real tokens/s as bars, with whiskers from the slowest to the fastest round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(s, s.tokens_per_s) for s in found if s.tokens_per_s][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.5 * len(shown)), dpi=120, layout="constrained")
    medians = [speed.median for _, speed in shown]
    whiskers = [[speed.median - speed.min for _, speed in shown], [speed.max - speed.median for _, speed in shown]]
    colors = ["#1f4e79" if s.label.startswith("ours") else "#b9c4d0" for s, _ in shown]
    names = [f"{s.title}\n{s.batch_size} rows a step" for s, _ in shown]
    axes.barh(names, medians, xerr=whiskers, color=colors, ecolor="#555555", capsize=3)
    for number, (_, speed) in enumerate(shown):
        axes.annotate(
            f"{speed.median:,.0f}", (speed.max, number), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.set(xlabel="real tokens a second, warm (median; slowest to fastest round)")
    axes.set_title(textwrap.fill(title.replace(",", ", "), 90), fontsize="medium")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
