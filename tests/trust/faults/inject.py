"""Kill train_sft.py at random moments of every stage, go on, and compare what it ends with to an uncut run.

    python -m tests.trust.faults.inject --points 40 --seed 1

Each point starts a small run of configs/nano.yaml, sends SIGKILL, SIGINT or SIGTERM, and starts the same command again
until it ends well; every fifth run is cut twice. Hashes, losses and scores have to be those of the uncut run, nothing
half-written may be left, and a stop that can be answered has to say how to go on. Called again, it goes on itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.answers.origin import command_line
from observer.console.arguments import positive
from observer.console.durations import format_duration
from observer.console.progress import show_progress
from observer.console.run import run_cli
from observer.errors import ObserverError
from observer.files import scan_jsonl, write_json
from tests.trust.faults.compare import artefacts
from tests.trust.faults.fault_case import Drawer, Outcome, Uncut, from_record, run_point
from tests.trust.faults.other_tests import run_others
from tests.trust.faults.watch import Phase, phases_of
from tests.trust.faults.workplace import Workplace
from tests.trust.result import TRUST_FOLDER, save_result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when anything was lost."""
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background: what it starts would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core: threads that share one wait for one another
    workplace = Workplace(args.work.resolve(), tuple(args.overrides))
    ledger = begin(workplace, asdict_of(args))
    uncut = uncut_of(workplace)
    outcomes = inject(args, workplace, uncut, ledger)
    others = run_others() if args.faults == "all" else []
    seconds = time.monotonic() - started
    passed = not any(outcome.faults for outcome in outcomes) and not any(other.is_lost for other in others)
    summary = summarize(outcomes)
    if others:
        counts = Counter(other.outcome for other in others)
        summary += f" Other faults: {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}."
    path = save_result(
        "faults",
        command=command_line("-m tests.trust.faults.inject", arguments),
        seconds=sum(outcome.seconds for outcome in outcomes) if args.faults == "kills" else seconds,
        passed=passed,
        summary=summary,
        details=details_of(uncut, outcomes) | {"others": [asdict(other) for other in others]},
        folder=args.results,
    )
    print(f"{summary}\n{path}")
    for outcome in outcomes:
        for fault in outcome.faults:
            print(f"point {outcome.number}: {fault}  [{workplace.root / 'places' / f'{outcome.number:03}'}]")
    for other in others:
        if other.is_lost:
            print(f"{other.name}: {other.reason}")
    if passed:
        shutil.rmtree(workplace.root)
    return int(not passed)


def begin(workplace: Workplace, settings: Mapping[str, Any]) -> Path:
    """The ledger to go on with; a work folder of other settings, or one that is done, begins anew."""
    ledger, head = workplace.root / "points.jsonl", workplace.root / "settings.json"
    try:
        goes_on = json.loads(head.read_text(encoding="utf-8")) == settings
    except (OSError, ValueError):
        goes_on = False
    if goes_on and len(read_ledger(ledger)) < settings["points"]:
        print(f"going on in {workplace.root} with the code it holds: {len(read_ledger(ledger))} points are done",
              file=sys.stderr)  # fmt: skip
        return ledger
    if workplace.root.exists() and not goes_on and not (head.exists() or not any(workplace.root.iterdir())):
        raise ObserverError(f"{workplace.root}: holds other files; name another folder with --work")
    shutil.rmtree(workplace.root, ignore_errors=True)
    workplace.prepare()
    write_json(head, settings)
    return ledger


def uncut_of(workplace: Workplace) -> Uncut:
    """Run once without a cut, or read what that gave."""
    path = workplace.root / "uncut.json"
    if not path.exists():
        place = workplace.place("uncut")
        watch = place.run_uncut()
        phases = {name: [asdict(phase) for phase in found] for name, found in phases_of(watch.events).items()}
        write_json(path, {"phases": phases, "artefacts": artefacts(place.paths.root, place.cache)})
    record = json.loads(path.read_text(encoding="utf-8"))
    phases = {name: [Phase(**phase) for phase in found] for name, found in record["phases"].items()}
    return Uncut(phases, record["artefacts"])


def inject(args: argparse.Namespace, workplace: Workplace, uncut: Uncut, ledger: Path) -> list[Outcome]:
    """Every point that is not in the ledger; each is there once it is done."""
    stages = args.stages or list(uncut.phases)
    if unknown := [stage for stage in stages if stage not in uncut.phases]:
        raise ObserverError(f"--stages: no stage {', '.join(unknown)}; there are {', '.join(uncut.phases)}")
    drawer, done = Drawer(args.seed, stages, uncut), read_ledger(ledger)
    n_before = len(done)
    with show_progress("points", args.points - n_before) as show:
        for number in range(args.points):
            if number in done:
                continue
            done[number] = run_point(number, drawer, workplace)
            with ledger.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(done[number])) + "\n")
            if not sys.stderr.isatty():
                print(line_of(done[number]), file=sys.stderr, flush=True)
            show(len(done) - n_before, args.points - n_before)
    return [done[number] for number in range(args.points)]


def read_ledger(path: Path) -> dict[int, Outcome]:
    """The points that are done; a last line that a kill cut is left out."""
    records = [record for _, record in scan_jsonl(path)[0]] if path.exists() else []
    return {record["number"]: from_record(record) for record in records}


def line_of(outcome: Outcome) -> str:
    """One line for a point."""
    cuts = ", then ".join(f"{cut.aim.signal} in {cut.aim.stage} (after {cut.place!r})" for cut in outcome.cuts)
    result = "; ".join(outcome.faults) or "equal"
    return f"point {outcome.number}: {cuts}: {outcome.n_resumes} resumed, {result}, {format_duration(outcome.seconds)}"


def summarize(outcomes: Sequence[Outcome]) -> str:
    """One sentence with the numbers."""
    cuts = [cut for outcome in outcomes for cut in outcome.cuts]
    kinds = Counter(cut.aim.signal for cut in cuts)
    n_twice = sum(len(outcome.cuts) > 1 for outcome in outcomes)
    n_lost, n_stages = sum(bool(outcome.faults) for outcome in outcomes), len({cut.aim.stage for cut in cuts})
    return (
        f"{len(outcomes)} points in {n_stages} stages, {n_twice} of them cut twice "
        f"({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}): "
        f"{len(outcomes) - n_lost} ended with the artefacts, losses and scores of the uncut run, {n_lost} did not."
    )


def details_of(uncut: Uncut, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Points by stage, and all that is known of each."""
    by_stage: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts = by_stage.setdefault(outcome.cuts[0].aim.stage, Counter())
        counts["points"] += 1
        counts["lost"] += bool(outcome.faults)
    return {
        "uncut_seconds": {stage: sum(phase.seconds for phase in found) for stage, found in uncut.phases.items()},
        "artefacts_compared": len(uncut.artefacts),
        "stages": {stage: dict(counts) for stage, counts in by_stage.items()},
        "points": [asdict(outcome) | {"faults": outcome.faults} for outcome in outcomes],
    }


def asdict_of(args: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for a later call to go on."""
    return {"points": args.points, "seed": args.seed, "stages": args.stages, "overrides": args.overrides}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=positive, default=40, metavar="N", help="runs to cut (40)")
    parser.add_argument("--seed", type=int, default=1, help="of stages, signals and moments (1)")
    parser.add_argument("--stages", type=lambda text: text.split(","), metavar="STAGE,…", help="only these (all)")
    parser.add_argument("--faults", choices=("kills", "all"), default="kills",
                        help="all: disks, second runs, clocks and memory too, by their tests")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE",
                        help="change the small run")  # fmt: skip
    parser.add_argument("--work", type=Path, default=TRUST_FOLDER / "faults-work", metavar="DIR",
                        help="code and runs; removed when nothing was lost (outputs/trust/faults-work)")  # fmt: skip
    parser.add_argument(
        "--results", type=Path, default=TRUST_FOLDER, metavar="DIR", help="for faults.json (outputs/trust)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
