"""One spelling for every model: `FILE.gguf`, a run's folder, `hf:FOLDER` or `ollama:NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from observer.backends.base import Backend
from observer.errors import ObserverError
from observer.observation import MAX_NEW_TOKENS
from observer.ollama.client import Patience
from observer.paths import ADAPTER, RunPaths
from observer.prompts import NO_EXAMPLES, Examples

TIMEOUT_S = Patience.timeout_s
PREFERRED_TYPE = "q8_0"


def open_backend(
    spec: str | Path,
    *,
    n_threads: int | None = None,
    timeout_s: float = TIMEOUT_S,
    max_new_tokens: int = MAX_NEW_TOKENS,
    n_ctx: int | None = None,
    examples: Examples = NO_EXAMPLES,
    keep_above: float | None = None,
) -> Backend:
    """Open the model that `spec` names. Raises ObserverError when there is none.

    `timeout_s` bounds each answer of a server; in this process `max_new_tokens` is the bound, and `n_ctx` that of a
    prompt and its answer together (None: what the model was made for).
    `examples` are shown before every exchange, for models that were not trained for the tasks. `keep_above`, a
    probability: see `observation.grade_of`.
    """
    if keep_above is not None and not 0 <= keep_above < 1:
        raise ObserverError(f"keep above {keep_above}: a probability is expected, at least 0 and below 1")
    for option, value in (("max_new_tokens", max_new_tokens), ("n_ctx", n_ctx)):
        if value is not None and value < 1:
            raise ObserverError(f"{option} {value}: at least 1 is expected")
    kind, name = model_place(spec)
    if kind == "ollama":
        from observer.backends.ollama import OllamaBackend

        if n_ctx:
            raise ObserverError(f"{spec}: a server has a context of its own; set num_ctx in the model's Modelfile")
        return OllamaBackend(
            name, patience=Patience(timeout_s), max_new_tokens=max_new_tokens, examples=examples,
            keep_above=keep_above,
        )  # fmt: skip
    if kind == "hf":
        from observer.backends.hf import HfBackend

        return HfBackend(
            Path(name), n_threads=n_threads, max_new_tokens=max_new_tokens, n_ctx=n_ctx, examples=examples,
            keep_above=keep_above,
        )  # fmt: skip
    from observer.engine.engine import Engine

    return Engine(
        best_gguf(Path(name)), n_ctx_per_row=n_ctx, n_threads=n_threads, max_new_tokens=max_new_tokens,
        examples=examples, keep_above=keep_above,
    )  # fmt: skip


def model_place(spec: str | Path) -> tuple[Literal["ollama", "hf", "gguf"], str]:
    """Which backend answers for a model, and the name or the path that it goes by there."""
    kind, _, name = str(spec).partition(":")
    if kind in ("ollama", "hf") and name:
        return kind, name
    return "hf" if (Path(spec) / "config.json").is_file() else "gguf", str(spec)


def best_gguf(path: Path) -> Path:
    """The file itself, or a run's q8_0, else its largest: the nearest to what was trained.

    Raises ObserverError when the folder holds none.
    """
    if not path.is_dir():
        if path.suffix != ".gguf" and not path.exists():
            raise no_model(path)
        return path
    folder = RunPaths(path, "").gguf(PREFERRED_TYPE).parent
    files = sorted(file for file in folder.glob("*.gguf") if not file.stem.endswith(f"-{ADAPTER}"))
    if not files:
        raise ObserverError(f"{path}: no GGUF in {folder.name}/; make some with: observer export {path} --out {folder}")
    preferred = [file for file in files if file.stem.endswith(f"-{PREFERRED_TYPE}")]
    return preferred[0] if preferred else max(files, key=lambda file: file.stat().st_size)


def no_model(path: Path) -> ObserverError:
    return ObserverError(f"{path}: no such model; name FILE.gguf, a run's folder, hf:FOLDER or ollama:NAME")
