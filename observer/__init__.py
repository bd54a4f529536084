"""qwen3-observer: fine-tune, quantize and prove a small local memory observer.

`from observer import Observer`; what it needs is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observer.client import Observer
    from observer.observation import Exchange, Observation

__version__ = "0.1.0"
__all__ = ["Exchange", "Observation", "Observer", "__version__"]

_HOME = {"Observer": "observer.client", "Exchange": "observer.observation", "Observation": "observer.observation"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
