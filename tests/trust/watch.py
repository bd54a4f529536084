"""Where a run of train_sft.py is, seen from outside: by the lines it prints and the files it leaves."""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

POLL_S = 0.005
"""Seconds between two looks."""

LISTENS, LOGS, SAVES = "listens to signals", "training.log begins", "adapter to be saved"
_DONE = re.compile(r"^(.+): done (in|before)\b", re.MULTILINE)
_STEP = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Phase:
    """A part of the run that lies between two events; `seconds` are those of the uncut run."""

    begins: str
    ends: str
    seconds: float


@dataclass
class Watch:
    """What has happened since the process began: event -> when it was first seen, in time.monotonic seconds."""

    pid: int
    root: Path
    """Of the run: outputs/<name>."""
    stdout: Path
    events: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._log = self.root / "training.log"
        self._old_log = _bytes_of(self._log)
        self._old_checkpoints = set(self._checkpoints())
        self._n_checkpoints: dict[str, int] = {}

    def look(self) -> None:
        """Note what is new. The process may be gone."""
        found = [LISTENS] if LISTENS not in self.events and _listens(self.pid) else []
        found += [_done(stage) for stage, _ in _DONE.findall(_bytes_of(self.stdout).decode(errors="replace"))]
        log = _bytes_of(self._log)
        if log and log != self._old_log:
            found.append(LOGS)
            if b"adapter of step" in log.removeprefix(self._old_log):
                found.append(SAVES)
        for name in sorted(set(self._checkpoints()) - self._old_checkpoints, key=_step_of):
            number = self._n_checkpoints.setdefault(name, len(self._n_checkpoints) + 1)
            found.append(_checkpoint(number))
            if (self.root / "checkpoints" / name / "trainer_state.json").exists():
                found.append(_whole(number))
        now = time.monotonic()
        for event in found:
            self.events.setdefault(event, now)

    def place(self) -> str:
        """The last event."""
        return max(self.events, key=self.events.__getitem__, default="the interpreter starts")

    def _checkpoints(self) -> list[str]:
        return [path.name for path in (self.root / "checkpoints").glob("checkpoint-*")]


def phases_of(events: Mapping[str, float]) -> dict[str, list[Phase]]:
    """The stages of an uncut run, each with the phases that it consists of; of checkpoints there are several."""
    stages = [event.removesuffix(" done") for event in events if event.endswith(" done")]
    marks = [("data preparation", LISTENS), ("base loading", _done("data"))]
    marks += [("training", LOGS), ("adapter save", SAVES)]
    marks += [(after, _done(before)) for before, after in itertools.pairwise(stages[stages.index("train") :])]
    marks.append(("", _done(stages[-1])))
    spans = {name: [(begins, ends)] for (name, begins), (_, ends) in itertools.pairwise(marks)}
    numbers = itertools.takewhile(lambda number: _whole(number) in events, itertools.count(1))
    spans["checkpoints"] = [(_checkpoint(number), _whole(number)) for number in numbers]
    return {
        name: [Phase(begins, ends, events[ends] - events[begins]) for begins, ends in spans]
        for name, spans in spans.items()
    }


def last_phase(phases: Mapping[str, Sequence[Phase]]) -> Phase:
    """What comes after it cuts nothing."""
    return [phase for stage, found in phases.items() if stage != "checkpoints" for phase in found][-1]


def _done(stage: str) -> str:
    return f"{stage} done"


def _checkpoint(number: int) -> str:
    return f"checkpoint {number} begins"


def _whole(number: int) -> str:
    return f"checkpoint {number} is whole"


def _step_of(name: str) -> int:
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else 0


def _listens(pid: int) -> bool:
    """Whether it has a handler of its own for SIGTERM: https://man7.org/linux/man-pages/man5/proc_pid_status.5.html"""
    caught = re.search(rb"^SigCgt:\s*(\w+)", _bytes_of(Path(f"/proc/{pid}/status")), re.MULTILINE)
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
