"""One case: a run that is cut at a drawn moment, once or twice, and then resumed to its end."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.trust.runs_compared import artefacts, differences, leftovers
from tests.trust.watch import POLL_S, Phase, Watch, last_phase, phases_of
from tests.trust.workplace import Place, Workplace

EXIT_CODES = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}
HOW_TO_RESUME = "the same command"
"""Words of the last line of a run that could say something."""
TWICE_SHARE = 0.2
"""Of the cases, those whose resumed run is cut as well."""
PATIENCE_S = 300.0
"""Seconds that a run may take to end after a signal."""
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


def uncut_of(workplace: Workplace) -> Uncut:
    """Run once without a cut."""
    place = workplace.place("uncut")
    watch = place.run_to_the_end()
    return Uncut(phases_of(watch.events), artefacts(place.paths.root, place.cache))


def drawn(stage: str, kind: str, stages: Sequence[str], rng: random.Random) -> list[tuple[str, str]]:
    """A cut of this stage by this signal; in some cases another, by any signal, at the same stage or a later one."""
    cuts = [(stage, kind)]
    if rng.random() < TWICE_SHARE:
        cuts.append((rng.choice(stages[stages.index(stage) :]), rng.choice(list(EXIT_CODES))))
    return cuts


def aim_at(stage: str, kind: str, phases: Mapping[str, Sequence[Phase]], rng: random.Random, scale: float) -> Aim:
    phase = rng.choice(phases[stage])
    return Aim(kind, phase, rng.random() * phase.seconds * scale)


def run_case(cuts: Sequence[tuple[str, str]], seed: int, workplace: Workplace, uncut: Uncut) -> list[str]:
    """Cut a run where it is drawn, earlier and earlier where that came too late, and compare what it ends with.

    Returns where it was cut. Raises AssertionError for what was lost, or not said as it should be; the folder stays.
    """
    for attempt in range(MOST_DRAWS):
        place = workplace.place("-".join(cuts[0]).replace(" ", "-"))
        rng = random.Random(f"{seed} {cuts}")
        first, *later = (aim_at(*cut, uncut.phases, rng, scale=0.5**attempt) for cut in cuts)
        if cut := cut_run(place, first, uncut):
            break
    else:
        raise AssertionError(f"{MOST_DRAWS} aims at {cuts[0]} came too late")
    made = [cut, *filter(None, (cut_run(place, aim, uncut) for aim in later))]
    place.run_to_the_end()
    faults = differences(uncut.artefacts, artefacts(place.paths.root, place.cache))
    faults += [f"{path}: left" for path in leftovers(place.paths.root, place.cache)]
    assert not faults, f"{place.folder}: {made}: {faults}"
    shutil.rmtree(place.folder)
    return made


def cut_run(place: Place, aim: Aim, uncut: Uncut) -> str | None:
    """Start the command and cut it: by what and after which event, or None when it ended before the moment came."""
    with place.running() as (process, watch):
        if not _wait_for(process, watch, aim):
            return None
        watch.look()
        event = watch.place()
        process.send_signal(signal.Signals[aim.signal])
        code = process.wait(PATIENCE_S)
    watch.look()
    last = last_phase(uncut.phases)
    if event in (last.begins, last.ends) and last.ends in watch.events:
        return None
    cut = f"{aim.signal} after {event!r}"
    said = place.last_words()
    assert code == EXIT_CODES[aim.signal], f"{cut}: exit code {code}: {said}"
    if aim.signal != "SIGKILL":
        assert HOW_TO_RESUME in said, f"{cut}: the last line does not say how to resume: {said!r}"
        text = place.output("err").read_text(encoding="utf-8", errors="replace")
        assert "Traceback (most" not in text and "Exception ignored" not in text, f"{cut}: a traceback: {text}"
    return cut


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
