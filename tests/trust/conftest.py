"""The nightly set under pytest: deselected unless `-m` names it; its options, and what each test says on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from observer.paths import PROJECT_ROOT
from tests.trust.results import OF, PARTS, is_current, load_results, origin, test_id

_PART_OF = {PROJECT_ROOT / path: part for part, (_, *paths) in PARTS.items() for path in paths}


HELP = {
    "model": "what answers: FILE.gguf or a run's folder",
    "run_config": "what is trained twice, and without a network",
    "scale": "of minutes and numbers of turns: 0.01 tries the set itself",
    "seed": "of the moments at which runs are cut",
}


@dataclass(frozen=True)
class Settings:
    """Of the nightly set; HELP says what they mean."""

    model: str = "outputs/nano"
    run_config: str = "configs/nano.yaml"
    scale: float = 1.0
    seed: int = 1


@dataclass(frozen=True)
class Night(Settings):
    """What a nightly test is given, and where its figures go: the page has a column for each."""

    property: Callable[[str, str], None] = print

    def record(self, **figures: object) -> None:
        for name, value in figures.items():
            self.property(name, str(value))  # xdist carries no values of our own from its processes


def add_options(add: Callable[..., object]) -> None:
    """Those of the set, to pytest's options or to argparse's."""
    for name, value in asdict(Settings()).items():
        add(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{HELP[name]} (default: {value})")
    add("--fresh", action="store_true", help="run again what passed before on this code")


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser.getgroup("nightly", "the nightly set (docs/trust.md)").addoption)


def settings_of(config: pytest.Config) -> Settings:
    given: dict[str, Any] = {name: config.getoption(name, value) for name, value in asdict(Settings()).items()}
    return Settings(**given)


@pytest.fixture
def night(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Night:
    return Night(**asdict(settings_of(request.config)), property=record_property)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the nightly tests out unless they are asked for, and then those that passed before on this code."""
    is_night = "nightly" in config.option.markexpr
    if is_night:
        _mark_tests_of_elsewhere(items)
        now, before = origin(asdict(settings_of(config))), load_results()
        if config.getoption("fresh", False):
            before.clear()
        parts = Counter(_PART_OF.get(item.path) for item in items if item.get_closest_marker("nightly"))
        for item in items:
            item.user_properties += [*now.items(), (OF, str(parts[_PART_OF.get(item.path)]))]
        left_out = [item for item in items if is_current(before.get(test_id(item.nodeid)), now)]
    else:
        left_out = [item for item in items if item.get_closest_marker("nightly")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _mark_tests_of_elsewhere(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path in _PART_OF and not item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.nightly)
