"""Ollama Modelfiles: one for both tasks, and a variant for each, all over the same weights.

Commands and their grammar: https://docs.ollama.com/modelfile
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from observer.config import ExportConfig
from observer.files import write_text
from observer.paths import MODELFILES, PROJECT_ROOT, RunPaths
from observer.prompts import IM_END, IM_START, OLLAMA_TEMPLATE, SYSTEM_PROMPTS, Task

Variant = Literal["", "grade", "extract"]
VARIANTS: tuple[Variant, ...] = ("", "grade", "extract")
REQUIRED_OLLAMA = "0.6.6"
"""The first Ollama that runs Qwen3."""


def render_modelfile(gguf: str, export: ExportConfig, variant: Variant, quantization: str) -> str:
    """The text of one Modelfile; `gguf` is the weights' path relative to where the Modelfile will lie.

    The variant "" carries the grading prompt and tells how to select extraction.
    """
    task = Task(variant) if variant else Task.GRADE
    model = f"qwen3-observer-{variant}" if variant else "qwen3-observer"
    file = f"Modelfile-{variant}" if variant else "Modelfile"
    lines = [
        f"# {model} ({quantization}): {_PURPOSE[variant]}",
        f"# ollama create {model} -f {file}",
        f"FROM {gguf}",
        f"REQUIRES {REQUIRED_OLLAMA}",
        "",
        "# The line break before the closing quotes is part of the prompt.",
        f"TEMPLATE {_quote(OLLAMA_TEMPLATE)}",
        "",
        *([] if variant else _HOW_TO_EXTRACT),
        f"SYSTEM {_quote(SYSTEM_PROMPTS[task])}",
        "",
        *(f"PARAMETER {name} {value}" for name, value in _parameters(export)),
        "",
        "LICENSE Apache-2.0",
    ]
    return "\n".join(lines) + "\n"


def write_modelfiles(paths: RunPaths, export: ExportConfig, quantization: str) -> list[Path]:
    """Write the run's Modelfiles over its GGUF of this type; the default one to ship is `quantizations[-1]`."""
    written = []
    for variant in VARIANTS:
        path = paths.modelfile(variant)
        gguf = Path(os.path.relpath(paths.gguf(quantization), path.parent)).as_posix()
        write_text(path, render_modelfile(f"./{gguf}", export, variant, quantization))
        written.append(path)
    return written


def write_committed(folder: Path) -> list[Path]:
    """Write the renderings that are kept in the repository, beside which a downloaded GGUF is to lie."""
    export = ExportConfig()
    quantization = export.quantizations[-1]
    written = []
    for variant in VARIANTS:
        path = RunPaths(folder, "qwen3-observer").modelfile(variant)
        write_text(path, render_modelfile(f"./qwen3-observer-{quantization}.gguf", export, variant, quantization))
        written.append(path)
    return written


_PURPOSE: dict[Variant, str] = {
    "": "grades a turn, or extracts from it when the system message asks for that.",
    "grade": "answers DISCARD, STORE or IMPORTANT.",
    "extract": "answers with entities and relationships as compact JSON.",
}

_HOW_TO_EXTRACT = [
    "# The system message selects the task. Without one, this asks for a grade; to extract, send as system message:",
    f"#   {SYSTEM_PROMPTS[Task.EXTRACT]}",
]


def _parameters(export: ExportConfig) -> list[tuple[str, str]]:
    return [
        ("temperature", "0"),
        ("repeat_penalty", "1"),  # Ollama's own default punishes the quotes and brackets of JSON
        ("num_ctx", str(export.num_ctx)),
        ("num_predict", str(export.num_predict)),
        ("stop", IM_END),
        ("stop", IM_START),
    ]


def _quote(text: str) -> str:
    assert '"""' not in f'{text}"', "a Modelfile has no escape for its quotes"
    return f'"""{text}"""'


if __name__ == "__main__":
    for file in write_committed(PROJECT_ROOT / MODELFILES):
        print(file.relative_to(PROJECT_ROOT))
