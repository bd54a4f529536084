"""The parts of a corpus as a Ray dataset: read as a stream beside the caller, mapped by a pool of workers."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from observer.backends.opening import TIMEOUT_S
from observer.errors import ObserverError, raise_all
from observer.observation import Asked
from observer.observe.bulk.cluster import Size
from observer.observe.bulk.worker import Worker, absolute, read_parts
from observer.observe.reading import STDIN, Reader, fault_of_name
from observer.turns.inputs import Reading

ROWS_PER_PART = 512
MAX_RETRIES = 3
"""How often a part is tried again after its worker died: a row that kills whoever reads it ends the run."""
PASSED_ON = ("OLLAMA_HOST",)
"""Variables that the caller's machine has for all."""


@dataclass(frozen=True)
class BulkOptions:
    """`spec` is the model; None is the default of `open_cluster`, `n_workers` models of `n_threads` each."""

    task: Asked
    inputs: tuple[str, ...]
    out: Path
    spec: str
    reading: Reading = field(default_factory=Reading)
    at: datetime | None = None
    rows_per_part: int = ROWS_PER_PART
    n_workers: int | None = None
    n_threads: int | None = None
    timeout_s: float = TIMEOUT_S
    address: str | None = None

    def open_reader(self) -> Reader:
        faults = [
            f"{name}: --ray reads files, since it reads them twice; {fix}"
            for name in self.inputs or (STDIN,)
            if (fix := _fix(name))
        ]
        raise_all(faults)
        return Reader(list(self.inputs), self.reading, self.at)


def _fix(name: str) -> str:
    if name == STDIN:
        return "save standard input in one"
    if os.path.isfile(name) or fault_of_name(name):
        return ""
    return "save what comes through it in one" if os.path.exists(name) else "text goes without --ray"


def answers(options: BulkOptions, parts: frozenset[int], identity: str, size: Size) -> Iterator[dict[str, Any]]:
    """What a `Worker` returns for each of the parts, in any order. Raises ObserverError when workers keep dying."""
    from ray.exceptions import RayError

    dataset = _dataset(options, parts, identity, size)
    try:
        for table in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            yield from table.to_pylist()
    except RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise ObserverError(
            f"--ray: a worker died {MAX_RETRIES + 1} times at the same part, or failed ({reason}); it may lack memory: "
            "try fewer --workers"
        ) from error


def _dataset(options: BulkOptions, parts: frozenset[int], identity: str, size: Size) -> Any:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised, and told in one line
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1  # a part is a row, and every row a block: one goes to each free worker
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    read = functools.partial(read_parts, options.open_reader(), options.rows_per_part, parts, max(parts), os.getcwd())
    rows = ray.data.read_datasource(_source(read), override_num_blocks=1, num_cpus=0, label_selector=here)
    limits = {"n_threads": size.n_threads, "timeout_s": options.timeout_s}
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    with warnings.catch_warnings():  # Ray 2.64 is to drop the last two, and to retry for ever: the extra stops before
        warnings.simplefilter("ignore", DeprecationWarning)
        return rows.map(
            Worker,  # pyright: ignore[reportArgumentType]
            fn_constructor_args=(absolute(options.spec), identity, options.task, limits, environment),
            compute=ActorPoolStrategy(size=size.n_workers),
            num_cpus=size.n_threads,
            max_restarts=-1,
            max_task_retries=MAX_RETRIES,
        )


def _source(read: Any) -> Any:
    """A data source of one stream, which `read` yields."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Parts(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]

    return Parts()
