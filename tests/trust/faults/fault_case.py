"""One case: a run that is cut at a drawn moment, once or twice, and then resumed until it ends well."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.trust.runs_compared import artefacts, differences, leftovers
from tests.trust.watch import POLL_S, Phase, Watch, is_over, phases_of
from tests.trust.workplace import Place, Workplace

EXIT_CODES = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}
HOW_TO_RESUME = "the same command"
"""Words of the last line of a run that could say something."""
TWICE_SHARE = 0.2
"""Of the cases, those whose resumed run is cut as well."""
PATIENCE_S = 300.0
"""Seconds that a run may take to end after a signal."""
MOST_RESUMES = 3
MOST_DRAWS = 8


@dataclass(frozen=True)
class Uncut:
    """The run to compare with: how long its phases took, and what it left."""

    phases: Mapping[str, Sequence[Phase]]
    artefacts: Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """Where to cut: so many seconds into a phase, but no later than its end."""

    signal: str
    phase: Phase
    delay_s: float


@dataclass(frozen=True)
class Cut:
    """What came of an aim. `place` is the last event seen, `fault` is empty when the run ended as it should."""

    signal: str
    place: str
    fault: str


@dataclass(frozen=True)
class Outcome:
    """`faults` are what was lost, or not said as it should be."""

    cuts: list[Cut]
    n_redrawn: int
    n_resumes: int
    faults: list[str]


def uncut_of(workplace: Workplace) -> Uncut:
    """Run once without a cut."""
    place = workplace.place("uncut")
    watch = place.run_uncut()
    return Uncut(phases_of(watch.events), artefacts(place.paths.root, place.cache))


def draw(stage: str, kind: str, phases: Mapping[str, Sequence[Phase]], rng: random.Random, scale: float) -> list[Aim]:
    """An aim at the stage with this signal; in some cases another, of any signal, at the same stage or a later one."""
    stages, kinds = [stage], [kind]
    if rng.random() < TWICE_SHARE:
        kinds.append(rng.choice(list(EXIT_CODES)))
        stages.append(rng.choice(list(phases)[list(phases).index(stage) :]))
    drawn = [rng.choice(phases[name]) for name in stages]
    return [Aim(kind, phase, rng.random() * phase.seconds * scale) for kind, phase in zip(kinds, drawn, strict=True)]


def run_case(stage: str, kind: str, seed: int, workplace: Workplace, uncut: Uncut) -> Outcome:
    """Cut a run where it is drawn, earlier and earlier where that came too late, and compare what it ends with."""
    for attempt in range(MOST_DRAWS):
        place = workplace.place(f"{stage} {kind}".replace(" ", "-"))
        rng = random.Random(f"{seed} {stage} {kind}")
        first, *later = draw(stage, kind, uncut.phases, rng, scale=0.5**attempt)
        if cut := cut_run(place, first, uncut):
            break
    else:
        raise AssertionError(f"{MOST_DRAWS} aims at {stage} came too late")
    cuts = [cut, *filter(None, (cut_run(place, aim, uncut) for aim in later))]
    end, n_resumes = _end_well(place)
    faults = [f"{cut.signal} after {cut.place!r}: {cut.fault}" for cut in cuts if cut.fault] + end
    faults += differences(uncut.artefacts, artefacts(place.paths.root, place.cache))
    faults += [f"{path}: left" for path in leftovers(place.paths.root, place.cache)]
    if not faults:
        place.remove()
    return Outcome(cuts, attempt, n_resumes, faults)


def cut_run(place: Place, aim: Aim, uncut: Uncut) -> Cut | None:
    """Start the command and cut it; None when it ended before the moment came."""
    with place.running() as (process, watch):
        if not _wait_for(process, watch, aim):
            return None
        watch.look()
        where = watch.place()
        process.send_signal(signal.Signals[aim.signal])
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return Cut(aim.signal, where, f"still at work {PATIENCE_S:.0f} s later")
    watch.look()
    if where in _last_events(uncut) and is_over(watch.events, uncut.phases):
        return None
    return Cut(aim.signal, where, _fault_of(aim, code, place))


def _wait_for(process: subprocess.Popen[bytes], watch: Watch, aim: Aim) -> bool:
    """Whether the moment came before the process ended."""
    while process.poll() is None:
        watch.look()
        if aim.phase.begins in watch.events:
            left_s = watch.events[aim.phase.begins] + aim.delay_s - time.monotonic()
            if left_s <= 0 or aim.phase.ends in watch.events:  # a machine that is faster now than in the uncut run
                return True
            time.sleep(min(left_s, POLL_S))
        else:
            time.sleep(POLL_S)
    return False


def _fault_of(aim: Aim, code: int, place: Place) -> str:
    """What is not as it should be in how a process ended."""
    if code != EXIT_CODES[aim.signal]:
        return f"exit code {code} in place of {EXIT_CODES[aim.signal]}: {place.last_words()}"
    if aim.signal == "SIGKILL":
        return ""
    if HOW_TO_RESUME not in place.last_words():
        return f"the last line does not say how to resume: {place.last_words()!r}"
    text = place.output("err").read_text(encoding="utf-8", errors="replace")
    return "a traceback" if "Traceback (most" in text or "Exception ignored" in text else ""


def _last_events(uncut: Uncut) -> set[str]:
    """The end of the last stage and what precedes it."""
    last = [phase for stage, phases in uncut.phases.items() if stage != "checkpoints" for phase in phases][-1]
    return {last.begins, last.ends}


def _end_well(place: Place) -> tuple[list[str], int]:
    """Start the command until it ends well; what it says when it does not, and how often it was started."""
    code = 0
    for n_resumes in range(1, MOST_RESUMES + 1):
        code, _ = place.run_to_the_end()
        if code == 0:
            return [], n_resumes
    return [f"not to be resumed (exit {code}): {place.last_words()}"], MOST_RESUMES
