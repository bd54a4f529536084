"""One point: a run that is cut at a drawn moment, once or twice, and then goes on until it ends well."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from observer.errors import ObserverError
from tests.trust.faults.compare import artefacts, differences, leftovers
from tests.trust.faults.watch import POLL_S, Phase, Watch, is_over
from tests.trust.faults.workplace import Place, Workplace

SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM")
EXIT_CODES = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}
GOES_ON = "the same command"
"""Words of the line that says how to go on."""
TWICE_EVERY = 5
"""Every so many points the resumed run is cut as well."""
PATIENCE_S = 300.0
"""Seconds that a run may take to end after a signal."""
MOST_RESUMES = 3
MOST_DRAWS = 8


@dataclass(frozen=True)
class Aim:
    """Where to cut: so many seconds after an event, but no later than another."""

    stage: str
    signal: str
    begins: str
    ends: str
    delay_s: float


@dataclass(frozen=True)
class Cut:
    """An aim, and what came of it. `place` is the last event seen, `fault` is empty when the run ended as it should."""

    aim: Aim
    place: str
    last_lines: str
    exit_code: int
    last_words: str
    fault: str


@dataclass(frozen=True)
class Outcome:
    """One point. `differences` and `leftovers` are of the finished run against the uncut one."""

    number: int
    cuts: list[Cut]
    n_redrawn: int
    n_resumes: int
    end: str
    differences: list[str]
    leftovers: list[str]
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What was lost, or not said as it should be."""
        found = [f"{cut.aim.signal} after {cut.place!r}: {cut.fault}" for cut in self.cuts if cut.fault]
        found += [self.end] if self.end else []
        return [*found, *self.differences, *(f"{path}: left" for path in self.leftovers)]


@dataclass(frozen=True)
class Uncut:
    """The run to compare with: how long its phases took, and what it left."""

    phases: Mapping[str, Sequence[Phase]]
    artefacts: Mapping[str, str]


@dataclass(frozen=True)
class Drawer:
    """Draws aims from a seed: stages and signals in turn, so that each comes as often as any other."""

    seed: int
    stages: Sequence[str]
    uncut: Uncut

    def aims(self, number: int, attempt: int) -> list[Aim]:
        """Of point `number`, from 0; a later attempt aims earlier in the same stage."""
        rng = random.Random(f"{self.seed} {number} {attempt}")
        order = random.Random(self.seed).sample(self.stages, len(self.stages))
        turn, place = divmod(number, len(order))
        kinds = [SIGNALS[(number + turn) % len(SIGNALS)]]
        stages = [order[place]]
        if number % TWICE_EVERY == TWICE_EVERY - 1:
            kinds.append(rng.choice(SIGNALS))
            stages.append(rng.choice(self.stages[list(self.stages).index(stages[0]) :]))
        aims = []
        for stage, kind in zip(stages, kinds, strict=True):
            phase = rng.choice(self.uncut.phases[stage])
            delay_s = round(rng.random() * phase.seconds * 0.5**attempt, 4)
            aims.append(Aim(stage, kind, phase.begins, phase.ends, delay_s))
        return aims


def run_point(number: int, drawer: Drawer, workplace: Workplace) -> Outcome:
    """Cut a run where the drawer says, redrawing what came too late, and compare what it ends with."""
    started, stage = time.monotonic(), drawer.aims(number, 0)[0].stage
    for attempt in range(MOST_DRAWS):
        place = workplace.place(f"{number:03}")
        first, *later = drawer.aims(number, attempt)
        if cut := cut_run(place, first, drawer.uncut):
            break
    else:
        raise ObserverError(f"point {number}: {MOST_DRAWS} aims at {stage} came too late; leave it out of --stages")
    cuts = [cut, *filter(None, (cut_run(place, aim, drawer.uncut) for aim in later))]
    end, n_resumes = _end_well(place)
    outcome = Outcome(
        number=number,
        cuts=cuts,
        n_redrawn=attempt,
        n_resumes=n_resumes,
        end=end,
        differences=differences(drawer.uncut.artefacts, artefacts(place.paths.root, place.cache)),
        leftovers=leftovers(place.paths.root, place.cache),
        seconds=round(time.monotonic() - started, 1),
    )
    if not outcome.faults:
        place.remove()
    return outcome


def cut_run(place: Place, aim: Aim, uncut: Uncut) -> Cut | None:
    """Start the command and cut it; None when it ended before the moment came."""
    with place.running() as (process, watch):
        if not _wait_for(process, watch, aim):
            return None
        watch.look()
        where, lines = watch.place(), watch.last_lines()
        process.send_signal(signal.Signals[aim.signal])
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return Cut(aim, where, lines, 0, place.last_words(), f"still at work {PATIENCE_S:.0f} s later")
    watch.look()
    if where in _last_events(uncut) and is_over(watch.events, uncut.phases):
        return None
    words = place.last_words()
    return Cut(aim, where, lines, code, words, _fault_of(aim, code, words, place))


def _wait_for(process: subprocess.Popen[bytes], watch: Watch, aim: Aim) -> bool:
    """Whether the moment came before the process ended."""
    while process.poll() is None:
        watch.look()
        if aim.begins in watch.events:
            left_s = watch.events[aim.begins] + aim.delay_s - time.monotonic()
            if left_s <= 0 or aim.ends in watch.events:  # a machine that is faster now than in the uncut run
                return True
            time.sleep(min(left_s, POLL_S))
        else:
            time.sleep(POLL_S)
    return False


def _fault_of(aim: Aim, code: int, words: str, place: Place) -> str:
    """What is not as it should be in how a process ended."""
    if code != EXIT_CODES[aim.signal]:
        return f"exit code {code} in place of {EXIT_CODES[aim.signal]}"
    if aim.signal == "SIGKILL":
        return ""
    if GOES_ON not in words:
        return f"the last line does not say how to go on: {words!r}"
    text = place.output("err").read_text(encoding="utf-8", errors="replace")
    return "a traceback" if "Traceback (most" in text or "Exception ignored" in text else ""


def _last_events(uncut: Uncut) -> set[str]:
    """The end of the last stage and what precedes it."""
    last = [phase for stage, phases in uncut.phases.items() if stage != "checkpoints" for phase in phases][-1]
    return {last.begins, last.ends}


def _end_well(place: Place) -> tuple[str, int]:
    """Start the command until it ends well; what it says when it does not, and how often it was started."""
    code = 0
    for n_resumes in range(1, MOST_RESUMES + 1):
        code, _ = place.run_to_the_end()
        if code == 0:
            return "", n_resumes
    return f"not to be resumed (exit {code}): {place.last_words()}", MOST_RESUMES


def from_record(record: Mapping[str, Any]) -> Outcome:
    """The outcome that `dataclasses.asdict` made a record of."""
    cuts = [Cut(**{**cut, "aim": Aim(**cut["aim"])}) for cut in record["cuts"]]
    return Outcome(**{**record, "cuts": cuts})
