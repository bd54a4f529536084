"""A Ray cluster for a bulk run: one that is there, or one on this machine that ends with the run. Both are quiet."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from observer.console.stopping import was_asked
from observer.errors import ObserverError

OBJECT_STORE_BYTES = 256 << 20
"""Of a cluster that we start: the parts under way and their answers, with room. Ray would take 30 % of the memory."""
LONGEST_FOLDER = 26
"""Characters: ours adds 13, Ray's sockets lie at most 64 deeper, and their path has at most 103 (macOS; Linux 107)."""


@dataclass(frozen=True)
class Size:
    """`n_threads` for each model."""

    n_workers: int
    n_threads: int


def check_installed() -> None:
    """Raise ObserverError unless Ray Data is installed."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise ObserverError("--ray: Ray Data is not installed; pip install -e '.[bulk]'")


@contextlib.contextmanager
def open_cluster(address: str | None, n_workers: int | None, n_threads: int | None) -> Iterator[Size]:
    """Connect to `address`, or start a cluster here; yield what it has room for.

    Raises ObserverError when there is no cluster at the address, or no room in it.
    """
    import ray

    from observer.engine.llama_model import usable_cores

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(_RaysWords()))
        if address:
            _connect(address, {})
            stack.callback(ray.shutdown)
            cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
            yield _fit(cpus, n_workers, n_threads)
            return
        size = _size(usable_cores(), n_workers, n_threads)
        folder = stack.enter_context(_folder())
        stack.callback(ray.shutdown)
        # Ray would leave one in ~/.ray, for other runs and clusters of this user to share.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        own = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, "_temp_dir": folder}
        _connect("local", {"num_cpus": size.n_workers * size.n_threads} | own)
        yield size


def _connect(address: str, options: dict[str, Any]) -> None:
    """`ray.init`, quietly; our handlers of signals stay, where Ray's would end the process at once."""
    import ray

    if address.startswith("ray://"):
        raise ObserverError(f"--ray-address {address}: run this on a machine of the cluster, with HOST:PORT or auto")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ part warns of what Ray Data does in every run
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _silent_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises plain ones as well, as for a machine too busy to start in time
        ray.shutdown()
        reason = " ".join(str(error).split())[:300]
        raise ObserverError(f"--ray-address {address}: {reason}; `ray status` tells what is there") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for kind, handler in handlers.items():
                signal.signal(kind, handler)


def _size(n_cores: int, n_workers: int | None, n_threads: int | None) -> Size:
    n_workers = n_workers or max(2, n_cores // 4)
    return Size(n_workers, n_threads or max(1, n_cores // n_workers))


def _fit(cpus: Sequence[float], n_workers: int | None, n_threads: int | None) -> Size:
    """What machines with so many CPUs have room for: more than that would wait for ever."""

    def room(n_threads: int) -> int:
        return sum(int(cpu) // n_threads for cpu in cpus)

    wanted = _size(int(sum(cpus)), n_workers, n_threads)
    if n_threads is None:
        n_threads = next((n for n in range(wanted.n_threads, 1, -1) if room(n) >= wanted.n_workers), 1)
    if n_workers is None and room(n_threads):
        return Size(min(wanted.n_workers, room(n_threads)), n_threads)
    if room(n_threads) < wanted.n_workers:
        raise ObserverError(
            f"--workers {wanted.n_workers}: the cluster has room for {room(n_threads)} of {n_threads} CPUs; "
            "ask for fewer, or for fewer --threads"
        )
    return Size(wanted.n_workers, n_threads)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A folder for Ray's sockets and logs that goes with the cluster."""
    base = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="ray-", dir=base if len(base) <= LONGEST_FOLDER else "/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _RaysWords(io.TextIOBase):
    """Ray tells of workers that died on stdout, in yellow: to stderr, and not when we end them ourselves."""

    def write(self, text: str) -> int:
        if not was_asked():
            sys.stderr.write(re.sub(r"\x1b\[\d*m", "", text))
        return len(text)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep from the terminal what C++ writes there: that its level is set. Errors come as exceptions."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
