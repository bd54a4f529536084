"""An observation for a person at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from observer.console.tables import STATE_STYLES, day, shown, table
from observer.observation import Observation
from observer.schema import Label

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LABEL_STYLES = {Label.DISCARD: "dim", Label.STORE: "cyan", Label.IMPORTANT: "bold green"}


def print_observation(console: Console, text: str, observation: Observation) -> None:
    """The start of the text, its grade, and what it states."""
    from rich.text import Text

    console.print(Text(shown(text)[:200], style="italic"))
    if observation.grade:
        grade = observation.grade
        line = Text().append(str(grade.label), style=LABEL_STYLES[grade.label])
        for label, probability in (grade.probabilities or {}).items():
            line.append(f"   {label} {probability:.2f}", style="dim")
        console.print(line)
    if observation.entities:
        console.print(_entities(observation))
    if observation.relationships:
        console.print(_relationships(observation))
    elif observation.task != "grade" and not (observation.grade and observation.grade.label is Label.DISCARD):
        console.print(Text("no relationships", style="dim"))
    notes = [f"hidden from the model: {redaction.kind}" for redaction in observation.redactions]
    notes += ["the answer reached its bound"] if observation.truncated else []
    notes += ["the model repeated itself, and was cut there"] if observation.repeated else []
    notes += [f"no room for the oldest context turns: {observation.context_cut}"] if observation.context_cut else []
    notes += [f"fault: {observation.fault}"] if observation.fault else []
    for note in notes:
        console.print(Text(shown(note), style="yellow"))
    console.print()


def _entities(observation: Observation) -> Table:
    rows = []
    for entity in observation.entities:
        attributes = ", ".join(f"{key}: {value}" for key, value in entity.attributes.items())
        rows.append((entity.name, str(entity.type), attributes, "yes" if entity.is_grounded else "no"))
    return table(["entity", "type", "attributes", "in the text"], rows)


def _relationships(observation: Observation) -> Table:
    rows = [
        (r.subject, str(r.predicate), r.object, str(r.temporal), r.when or "", day(r.valid_at), day(r.invalid_at),
         r.stated_by or "", "" if r.confidence is None else f"{r.confidence:.2f}")
        for r in observation.relationships
    ]  # fmt: skip
    columns = ["subject", "predicate", "object", "temporal", "when", "from", "until", "stated by", "confidence"]
    return table(columns, rows, [STATE_STYLES.get(str(r.temporal), "dim") for r in observation.relationships])
