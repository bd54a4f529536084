"""`export.md`: what an export wrote and how it was verified, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from observer.export.export import ExportPlan, notes_of
from observer.export.gguf.against_transformers import Outcome
from observer.runs.manifest import Manifest

EXPORT_MD = "export.md"
_MARKS = {
    Outcome.PASSED: "",
    Outcome.SKIPPED: "not checked: ",
    Outcome.WARNED: "**warning:** ",
    Outcome.FAILED: "**failed:** ",
}


def render_report(plan: ExportPlan, manifest: Manifest, command: str) -> str:
    """The files of the plan; each is described by the notes of its stage."""
    notes = {plan.path(file).name: notes_of(manifest, file) for file in plan.files}
    parts = [f"# {plan.source.name} as GGUF", _origin(plan, command), _files(notes)]
    parts += [f"## {name}\n\n{_checks(note['checks'])}" for name, note in notes.items()]
    return "\n\n".join(parts) + "\n"


def _origin(plan: ExportPlan, command: str) -> str:
    folders = [f"- {role}: `{folder}`" for role, folder in plan.source.inputs.items()]
    return "\n".join(
        [*folders, f"- command: `{command}`", "- hashes of all inputs, versions and commit: `export.json`"]
    )


def _files(notes: dict[str, dict[str, Any]]) -> str:
    lines = ["| file | MB | tensors | imatrix | other types than asked for |", "|---|---|---|---|---|"]
    for name, note in notes.items():
        tensors = ", ".join(f"{count} {kind}" for kind, count in note["tensor_types"].items())
        cells = [name, f"{note['size_bytes'] / 1e6:,.1f}", tensors, "yes" if note["has_imatrix"] else ""]
        lines.append(f"| {' | '.join(cells)} | {', '.join(note['fallbacks'])} |")
    return "\n".join(lines)


def _checks(checks: Sequence[dict[str, str]]) -> str:
    return "\n".join(f"- {check['name']}: {_MARKS[Outcome(check['outcome'])]}{check['found']}" for check in checks)
