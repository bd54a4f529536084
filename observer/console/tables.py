"""Tables for a person at a terminal. Names come from conversations: nothing of them is taken for markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from observer.errors import HIDDEN_CHARACTERS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STATE_STYLES = {"ongoing": "green", "future": "cyan"}
_CONTROL = re.compile(rf"[\t\n{HIDDEN_CHARACTERS}]")


def open_console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] | None = None) -> Table:
    """A table of plain text; columns that are empty in every row are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    used = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number in used:
        made.add_column(columns[number], overflow="fold")
    for place, row in enumerate(rows):
        made.add_row(*(Text(shown(row[number])) for number in used), style=styles[place] if styles else None)
    return made


def shown(text: str) -> str:
    """Text that cannot move the cursor, change colours or turn round what is beside it."""
    return _CONTROL.sub(lambda match: " " if match.group() in "\t\n\r" else "\N{REPLACEMENT CHARACTER}", text)


def day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment else ""
