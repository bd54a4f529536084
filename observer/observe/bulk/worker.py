"""What runs on the machines of a bulk run: one reader beside the caller, and workers with a model each.

A part travels as one row of a Ray dataset. Nothing here writes a file: answers go back to the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.backends.opening import best_gguf, model_place, no_model
from observer.console.telemetry import switch_off
from observer.errors import ObserverError
from observer.files import sha256_file
from observer.observation import Asked, Exchange
from observer.observe.bulk.parts import Done, Part, good_rows, parts_of
from observer.observe.observations_file import to_line
from observer.observe.reading import Reader
from observer.observe.run import BATCH_ROWS, ask_batch
from observer.observe.streaming import batches
from observer.observe.tally import remarks_on

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
        self, spec: str, identity: str, task: Asked, limits: dict[str, Any], environment: dict[str, str]
    ) -> None:
        switch_off()
        os.environ.update(environment)
        self._spec, self._identity, self._limits = spec, identity, limits
        self._task: Asked = task
        self._observer: Observer | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The part's observations as `lines` and its `Done` as JSON; or `stop`, why all must end."""
        rows = [(place, Exchange.model_validate_json(text)) for place, text in json.loads(row["rows"])]
        try:
            observer = self._open()
            # In batches of the size that a run without Ray has: the same rows side by side give the same answers.
            in_batches = batches([exchange for _, exchange in rows], BATCH_ROWS)
            observations = [one for batch in in_batches for one in ask_batch(observer, self._task, batch)]
        except ObserverError as error:
            return {"lines": b"", "done": "", "stop": str(error)}
        lines = b"".join(map(to_line, observations))
        done = Done(
            part=int(row["part"]),
            rows=len(rows),
            task=self._task,
            model=self._identity,
            model_name=observer.name,
            input=row["input"],
            output=hashlib.sha256(lines).hexdigest(),
            faults=[(place, one.fault) for (place, _), one in zip(rows, observations, strict=True) if one.fault],
            remarks=dict(remarks_on(observations)),
        )
        return {"lines": lines, "done": done.to_json(), "stop": ""}

    def _open(self) -> Observer:
        if self._observer is None:
            from observer.client import Observer

            if identify(self._spec) != self._identity:
                raise ObserverError(f"{self._spec}: another model on a machine of the cluster; copy the same to all")
            self._observer = Observer(self._spec, **self._limits)
        return self._observer


def identify(spec: str) -> str:
    """A hash of the model's files; of a model in Ollama, its name. Raises ObserverError when there is none."""
    kind, name = model_place(spec)
    if kind == "ollama":
        return spec
    path = Path(name) if kind == "hf" else best_gguf(Path(name))
    if not path.exists():
        raise no_model(path)
    return f"sha256:{sha256_file(path)}"


def absolute(spec: str) -> str:
    """The same model, named so that it is found from any folder."""
    kind, name = model_place(spec)
    return spec if kind == "ollama" else f"{'hf:' if kind == 'hf' else ''}{Path(name).absolute()}"
