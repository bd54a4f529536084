"""What a benchmark of quantizations found: every file's scores, verdict and costs, and the one to ship.

From measurements to one object, and from that to JSON; what of it is shown is `view`'s, the files are `page`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.answers.rows import families_of
from eval.metrics.significance import Interval
from eval.metrics.spread import Spread, spread
from eval.quantizations.choice import MARGIN, Choice, Recommendation, Verdict, judge, recommend, rule_text
from eval.quantizations.files import Candidate
from eval.quantizations.plots import SizePoint
from eval.quantizations.quality import Quality
from eval.quantizations.rounds import Measurements
from eval.quantizations.speed import Speed
from eval.reports.comparison import Comparison, Test, compare_many
from eval.reports.evaluation_report import Report

RATES = ("prefill_tokens_per_s", "decode_tokens_per_s", "grade_examples_per_s", "extract_examples_per_s")
COSTS = ("ttft_ms", "load_s", "peak_bytes")


@dataclass(frozen=True)
class SpeedSummary:
    """Over the rounds; `ratios` of the rates pair a round's figure with the reference's in the same round."""

    figures: dict[str, Spread]
    ratios: dict[str, Spread]


@dataclass(frozen=True)
class FileResult:
    """One file. `comparison` is None for the reference."""

    candidate: Candidate
    size_bytes: int
    verdict: Verdict
    report: Report
    comparison: Comparison | None
    quality: Quality | None
    quality_fault: str | None
    speed: SpeedSummary | None

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def tests(self) -> list[Test]:
        return self.comparison.tests if self.comparison else []

    def test(self, measure: str) -> Test | None:
        return next((test for test in self.tests if test.measure == measure), None)


@dataclass(frozen=True)
class Benchmark:
    """`files` begin with the reference; `failures` could not be measured; `facts` say what was measured where."""

    title: str
    files: list[FileResult]
    failures: dict[str, str]
    recommendation: Recommendation
    margin: float
    facts: dict[str, str]

    @property
    def reference(self) -> FileResult:
        return self.files[0]

    @property
    def recommended(self) -> FileResult:
        return next(file for file in self.files if file.name == self.recommendation.name)

    @property
    def pair(self) -> list[FileResult]:
        """The reference, and the file set beside it: the recommended one, or else the largest other."""
        if self.recommended is not self.reference:
            return [self.reference, self.recommended]
        return [self.reference, *sorted(self.files[1:], key=lambda file: -file.size_bytes)[:1]]

    @property
    def is_stand_in(self) -> bool:
        return any(file.report.model.is_stand_in for file in self.files)


def assemble(
    measurements: Measurements,
    reports: Sequence[Report],
    *,
    title: str,
    facts: Mapping[str, str],
    margin: float = MARGIN,
) -> Benchmark:
    """Compare every file with the first and choose. `reports` are the scores of the same files in the same order."""
    first, *others = measurements.files
    comparisons = [None, *compare_many(first.answers, [one.answers for one in others])]
    n_families = min(
        len(set(families_of(rows))) for rows in (first.answers.grade_rows, first.answers.extract_rows) if rows
    )
    files = [
        FileResult(
            candidate=one.candidate,
            size_bytes=one.candidate.path.stat().st_size,
            verdict=judge(comparison.tests, n_families, margin) if comparison else Verdict.REFERENCE,
            report=report,
            comparison=comparison,
            quality=one.quality,
            quality_fault=one.quality_fault,
            speed=summarize_speed(one.speeds, first.speeds),
        )
        for one, report, comparison in zip(measurements.files, reports, comparisons, strict=True)
    ]
    choices = [
        Choice(file.name, file.size_bytes, file.verdict, file.tests, file.quality and file.quality.mean_kld)
        for file in files
    ]
    facts = dict(facts) | {"rule": rule_text(margin)}
    return Benchmark(title, files, measurements.failures, recommend(choices, n_families, margin), margin, facts)


def summarize_speed(speeds: Sequence[Speed], reference: Sequence[Speed]) -> SpeedSummary | None:
    """None without rounds."""
    if not speeds:
        return None
    figures, ratios = {}, {}
    for name in (*RATES, *COSTS):
        pairs = [(getattr(one, name), getattr(base, name)) for one, base in zip(speeds, reference, strict=True)]
        figures[name] = spread(value for value, _ in pairs if value is not None)
        if name in RATES:
            ratios[name] = spread(value / base for value, base in pairs if value is not None and base)
    known = [{name: one for name, one in part.items() if one is not None} for part in (figures, ratios)]
    return SpeedSummary(*known)


def score_of(file: FileResult, measure: str) -> tuple[float, Interval | None] | None:
    """A measure's value and interval; None where the rows have none of its task."""
    scores = file.report.grading if measure == "accuracy" else file.report.extraction
    if scores is None:
        return None
    return getattr(scores, measure), scores.intervals.get(measure)


def size_points(benchmark: Benchmark, measure: str) -> list[SizePoint]:
    """Every file with its size, for the plots."""
    scores = [(file, score_of(file, measure)) for file in benchmark.files]
    return [size_point(benchmark, file, *found) for file, found in scores if found]


def size_point(benchmark: Benchmark, file: FileResult, value: float, interval: Interval | None = None) -> SizePoint:
    return SizePoint(
        type_name=file.candidate.type_name,
        size_bytes=file.size_bytes,
        value=value,
        low=interval.low if interval else value,
        high=interval.high if interval else value,
        verdict=str(file.verdict),
        has_imatrix=file.candidate.has_imatrix,
        is_recommended=file is benchmark.recommended,
    )


def to_json(benchmark: Benchmark) -> dict[str, Any]:
    """All figures, for programs."""
    files = [
        {"name": file.name, "path": str(file.candidate.path), "type": file.candidate.type_name}
        | {"has_imatrix": file.candidate.has_imatrix, "n_fallbacks": file.candidate.n_fallbacks}
        | {"size_bytes": file.size_bytes, "verdict": file.verdict, "scores": asdict(file.report)}
        | {"comparison": file.comparison and file.comparison.to_json()}
        | {"quality": file.quality and asdict(file.quality)}
        | {"quality_fault": file.quality_fault, "speed": file.speed and asdict(file.speed)}
        for file in benchmark.files
    ]
    head = {"title": benchmark.title, "margin": benchmark.margin, "facts": benchmark.facts}
    head |= {"recommendation": asdict(benchmark.recommendation), "failures": benchmark.failures}
    return head | {"files": files}
