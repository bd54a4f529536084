"""What runs on the machines of a bulk run: one reader beside the caller, and workers with a model each.

A part travels as one row of a Ray dataset. Nothing here writes a file: answers go back to the caller.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.console.telemetry import switch_off
from observer.errors import ObserverError
from observer.files import sha256_file
from observer.observation import Asked, Exchange, Observation
from observer.observe.bulk.parts import Part, good_rows, parts_of
from observer.observe.observations_file import to_line
from observer.observe.reading import Reader
from observer.observe.run import BATCH_ROWS, remarks_on
from observer.observe.streaming import batches

if TYPE_CHECKING:
    from observer.client import Observer


def read_parts(reader: Reader, rows_per_part: int, wanted: Container[int], last: int, folder: str) -> Iterator[Any]:
    """A table of one row for each part that is `wanted`, up to the `last`; places are relative to `folder`."""
    os.chdir(folder)
    for part in parts_of(good_rows(reader.rows()), rows_per_part):
        if part.number in wanted:
            yield _table(part)
        if part.number >= last:
            return


def _table(part: Part) -> Any:
    import pyarrow

    rows = json.dumps([[row.place, row.exchange.model_dump_json()] for row in part.rows])
    return pyarrow.table({"part": [part.number], "input": [part.sha256], "rows": [rows]})


class Worker:
    """A model, opened when the first part comes. Its identity is that of the caller's, or nothing is asked.

    `environment` are variables of the caller that matter to the model; the machine's own give way.
    """

    def __init__(
        self, spec: str, identity: str, task: Asked, options: dict[str, Any], environment: dict[str, str]
    ) -> None:
        switch_off()
        os.environ.update(environment)
        self._spec, self._identity, self._task, self._options = spec, identity, task, options
        self._observer: Observer | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The part's observations as lines, places and reasons of those with a fault, other remarks on how many; or
        `stop`, why all must end."""
        answer = {"part": row["part"], "input": row["input"], "lines": b"", "rows": 0, "faults": "[]", "remarks": "{}"}
        try:
            observer = self._open()
            rows: list[list[str]] = json.loads(row["rows"])
            observations = self._ask(observer, [Exchange.model_validate_json(text) for _, text in rows])
        except ObserverError as error:
            return answer | {"model_name": "", "stop": str(error)}
        faults = [(place, one.fault) for (place, _), one in zip(rows, observations, strict=True) if one.fault]
        lines = b"".join(map(to_line, observations))
        found = {"lines": lines, "rows": len(rows), "faults": json.dumps(faults), "model_name": observer.name}
        return answer | found | {"remarks": json.dumps(remarks_on(observations)), "stop": ""}

    def _open(self) -> Observer:
        if self._observer is None:
            from observer.client import Observer

            if identify(self._spec) != self._identity:
                raise ObserverError(f"{self._spec}: another model on a machine of the cluster; copy the same to all")
            self._observer = Observer(self._spec, **self._options)
        return self._observer

    def _ask(self, observer: Observer, exchanges: Sequence[Exchange]) -> list[Observation]:
        """In batches of the size that a run without Ray has: the same rows side by side give the same answers."""
        ask = {"grade": observer.grade_many, "extract": observer.extract_many, "observe": observer.observe_many}
        return [one for batch in batches(exchanges, BATCH_ROWS) for one in ask[self._task](batch)]


def identify(spec: str) -> str:
    """A hash of the model's files; of a model in Ollama, its name. Raises ObserverError when there is none."""
    from observer.backends.opening import best_gguf

    kind, path = _path_of(spec)
    if kind == "ollama":
        return spec
    if kind != "hf" and not (path / "config.json").is_file():
        path = best_gguf(path)
    if not path.exists():
        raise ObserverError(f"{path}: no such model; name FILE.gguf, a run's folder, hf:FOLDER or ollama:NAME")
    return f"sha256:{sha256_file(path)}"


def absolute(spec: str) -> str:
    """The same model, named so that it is found from any folder."""
    kind, path = _path_of(spec)
    return spec if kind == "ollama" else f"{kind}{':' if kind else ''}{path.absolute()}"


def _path_of(spec: str) -> tuple[str, Path]:
    """`hf`, `ollama` or nothing, and the path behind it."""
    kind, _, name = spec.partition(":")
    return (kind, Path(name)) if kind in ("hf", "ollama") and name else ("", Path(spec))
