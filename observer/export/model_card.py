"""The README.md beside a run's GGUF files: a Hugging Face model card of what the run itself recorded.

Every figure is read from its config, manifest and evaluation reports; what is not there is not written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from observer.config import Config
from observer.data.dataset import read_part
from observer.files import scan_jsonl, write_text
from observer.ollama.modelfile import is_apache, library_base
from observer.paths import NANO_BASE, RunPaths
from observer.prompts import Task
from observer.runs.finished_run import Run
from observer.runs.manifest import Manifest
from observer.schema import Label, one_of

STAND_IN = (
    "> The base is the nano stand-in of the project, a few million parameters made to run the pipeline on two CPU "
    "cores. The scores show that the pipeline works, not how good a model of 0.6B parameters is."
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SCORES = {
    "accuracy": ("grading", "accuracy"),
    "macro-F1": ("grading", "macro_f1"),
    "TF-IDF probe": ("baselines", "tfidf", "macro_f1"),
    "JSON valid": ("extraction", "json_validity"),
    "entity F1": ("extraction", "entity_f1"),
    "triple F1": ("extraction", "triple_f1"),
    "with temporal": ("extraction", "triple_f1_temporal"),
    "correct empty": ("extraction", "correct_empty_rate"),
}


def write_model_card(run: Run) -> None:
    write_text(run.paths.model_card, render_model_card(run))


def render_model_card(run: Run) -> str:
    config, paths = run.config, run.paths
    reports = read_evaluations(paths.reports)
    is_stand_in = config.model.base == NANO_BASE.as_posix() or any(r["model"]["is_stand_in"] for r in reports)
    parts = [
        _front_matter(config, is_stand_in),
        f"# {paths.name}",
        *([STAND_IN] if is_stand_in else []),
        "Reads the last exchange of a conversation and grades it for long-term memory "
        f"({one_of(f'`{label}`' for label in Label)}), or extracts who and what it states as compact JSON. GGUF "
        "files for llama.cpp and Ollama.",
        _files_section(paths),
        _scores_section(reports),
        _training_section(config, paths),
        _data_section(run),
        _use_section(run),
        _limits_section(is_stand_in),
        _licence_section(config),
    ]
    return "\n\n".join(parts) + "\n"


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluation reports of a run, whole ones only, the largest file first."""
    found = []
    for path in sorted(folder.glob("*evaluation-*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(report, dict) and {"model", "split", "grading", "extraction"} <= report.keys():
            found.append(report)
    return sorted(found, key=lambda report: (report["split"], -(report["model"]["size_bytes"] or 0)))


def _front_matter(config: Config, is_stand_in: bool) -> str:
    head: dict[str, Any] = {}
    base = config.model.base
    if not is_stand_in and _HUB_ID.fullmatch(base) and not Path(base).exists():
        head = {"base_model": base, "base_model_relation": "finetune"}
    head["language"] = ["en"]
    head |= {"license": "apache-2.0"} if is_apache(base) else {"license": "other"}
    head |= {"pipeline_tag": "text-generation", "tags": ["gguf", "ollama", "lora", "memory", "information-extraction"]}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _files_section(paths: RunPaths) -> str:
    folder = paths.model_card.parent
    prefix = f"{paths.name}-"
    rows = [
        [f"`{path.name}`", path.stem.removeprefix(prefix), f"{path.stat().st_size / 1e6:,.1f}"]
        for path in sorted(folder.glob("*.gguf"), key=lambda path: -path.stat().st_size)
    ]
    return "## Files\n\n" + (_table(["file", "type", "MB"], rows) if rows else "No GGUF file is here yet.")


def _scores_section(reports: Sequence[Mapping[str, Any]]) -> str:
    if not reports:
        return "## Scores\n\nNot evaluated: no report was found in this run."
    header = ["type", "rows", *(name for name in _SCORES if any(_score(r, name) is not None for r in reports))]
    tables = []
    for split in dict.fromkeys(report["split"] for report in reports):
        of_split = [report for report in reports if report["split"] == split]
        rows = [[r["model"]["file_type"], _counts(r), *(_shown(_score(r, n)) for n in header[2:])] for r in of_split]
        tables.append(f"On `{split}`:\n\n{_table(header, rows)}")
    note = "Rows are graded / extracted from. The probe is TF-IDF with logistic regression on the same rows, macro-F1."
    return "\n\n".join(["## Scores", *tables, note])


def _score(report: Mapping[str, Any], name: str) -> float | None:
    value: Any = report
    for key in _SCORES[name]:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, (int, float)) else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _counts(report: Mapping[str, Any]) -> str:
    return " / ".join(f"{(report[part] or {}).get('n', 0):,}" for part in ("grading", "extraction"))


def _training_section(config: Config, paths: RunPaths) -> str:
    lora, training = config.lora, config.training
    revision = f", revision `{config.model.revision}`" if config.model.revision else ""
    scale = "alpha / sqrt(r)" if lora.use_rslora else "alpha / r"
    notes = Manifest(paths.manifest).notes("train")
    rows_a_step = notes.get("rows_a_step") or training.batch_size * training.gradient_accumulation_steps
    lines = [
        f"- base: `{config.model.base}`{revision}{', in 4 bits (NF4)' if config.model.load_in_4bit else ''}",
        f"- LoRA: rank {lora.r}, alpha {lora.lora_alpha} (scale {scale}), on {', '.join(lora.target_modules)}",
        f"- learning rate {training.learning_rate:g} ({training.lr_scheduler_type}), "
        f"{rows_a_step} rows a step, seed {config.run.seed}",
    ]
    if config.model.adapter:
        lines.append(f"- trained further from the adapter `{config.model.adapter}`")
    final = notes.get("final") or {}
    if "steps" in notes:
        lines.append(f"- {notes['steps']:,} steps")
    if "eval_loss" in final:
        lines.append(f"- loss on the validation rows at the end: {final['eval_loss']:.4f}")
    return "\n".join(["## Training", "", *lines])


def _data_section(run: Run) -> str:
    files = {"train": run.split.train, "validation": run.split.val}
    more = [f"- more train rows: `{path}`{_task_counts(read_part(path, 'train'))}" for path in run.config.data.more]
    lines = [f"- {name}: `{path}`{_row_counts(path)}" for name, path in files.items()] + more
    return "\n".join(["## Data", "", *lines])


def _row_counts(path: Path) -> str:
    if not path.exists():
        return ""
    return _task_counts([row for _, row in scan_jsonl(path)[0]])


def _task_counts(rows: Sequence[Mapping[str, Any]]) -> str:
    tasks = [row.get("task") for row in rows]
    return (
        f", {len(tasks):,} rows ({tasks.count(Task.GRADE):,} to grade, {tasks.count(Task.EXTRACT):,} to extract from)"
    )


def _use_section(run: Run) -> str:
    shipped = run.config.export.quantizations[-1]
    file = run.paths.modelfile_of(shipped, "grade").name
    lines = [
        "## Use",
        "",
        "```sh",
        f"ollama create {run.paths.name}-grade -f {file}",
        f'ollama run {run.paths.name}-grade "USER: I just moved to Lisbon"',
        "```",
        "",
        "The Modelfiles carry prompt template, system prompt, greedy decoding and stop tokens. The user message is the "
        "exchange, a line a turn: `USER: …`, then `ASSISTANT: …`; further lines of a message are indented by two "
        "blanks. Text that looks like a control token must be neutralised before; `observer.prompts.render_exchange` "
        "does all of this.",
    ]
    if model := library_base(run.config.model.base):
        lines += ["", f"`Modelfile-adapter` needs only the adapter GGUF and Ollama's `{model}`."]
    return "\n".join(lines)


def _limits_section(is_stand_in: bool) -> str:
    lines = [
        "- Scores are of the rows named above; conversations of other people and subjects may go worse.",
        "- Labels, entity types and predicates are closed sets; what fits none becomes `RELATED_TO` or is left out.",
        "- No thinking, no tools, no other tasks: it is trained to answer these two prompts.",
        "- What it grades or extracts is not checked against the world; do not decide about people by it.",
    ]
    return "\n".join(
        ["## Limits", "", *lines, *(["- A stand-in base: see the note at the top."] if is_stand_in else [])]
    )


def _licence_section(config: Config) -> str:
    if is_apache(config.model.base):
        return "## Licence\n\nApache-2.0, as the base."
    return f"## Licence\n\nThat of the base, `{config.model.base}`, and of the rows it was trained on."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
