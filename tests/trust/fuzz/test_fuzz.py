"""Every parser of outside input takes any bytes: the targets of `fuzz.py`, from seeds and what once broke them."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.trust.conftest import Night
from tests.trust.fuzz.bounds import CPU_SECONDS, MAX_INPUT_BYTES, TooSlow, bounds
from tests.trust.fuzz.libfuzzer import fuzz
from tests.trust.fuzz.mutations import TOKENS, mutated
from tests.trust.fuzz.replay import replay
from tests.trust.fuzz.targets import REGRESSIONS, TARGETS, Target
from tests.trust.fuzz.texts import ACCEPTED

pytestmark = pytest.mark.timeout(300, method="thread")  # code in C that never comes back ends the run, with a traceback

FORMER_FAULTS = sorted(REGRESSIONS.glob("*/*"))
MUST_TAKE = {
    "configs": ["configs.<locals>.<lambda>"],
    "rows": ["read_raw_rows", "check_files", "read_rows"],
    "turns": ["to_exchange"],
    "observation_ledgers": ["_read_ledger"],
    "label_ledgers": ["read_ledger", "label_ledgers.<locals>.opened"],
    "memories": ["_use_memory"],
    "manifests": ["Manifest"],
    "saved_answers": ["load_answers"],
    "ollama_answers": ["ollama_answers.<locals>.<lambda>"],
    "gguf_files": ["check_is_gguf", "read_header"],
    "checkpoints": ["check_base", "read_shape", "list_tensors"],
    "tokenizers": ["add_vocabulary"],
    "adapters": ["read_lora"],
}
MINUTES = 60
"""For all targets together."""
FUZZED = Path("outputs/fuzz")
each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)


def assert_sound(target: Target, data: bytes) -> None:
    """Within three times the bound of the fuzzing: a hang is seen, and a busy machine is none."""
    with bounds(3 * CPU_SECONDS):
        target.run(data)


@pytest.mark.parametrize("path", FORMER_FAULTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_broke_a_parser_no_longer_does(path: Path) -> None:
    target = TARGETS[path.parent.name]
    target.warm_up()
    assert_sound(target, path.read_bytes())


@each_target
def test_seeds_and_changes_of_them_break_nothing(target: Target) -> None:
    """Some seeds are taken by every parser that can refuse, or the changes would not reach far."""
    target.warm_up()
    seeds = target.seeds()
    before = ACCEPTED.copy()
    for seed in seeds[::7]:
        assert_sound(target, seed)

    assert {name for name in MUST_TAKE.get(target.name, ()) if ACCEPTED[name] == before[name]} == set()

    @given(st.integers(0, 2**32), st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode()))
    @settings(max_examples=12, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
    def check(seed: int, blind: bytes) -> None:
        rng = random.Random(seed)
        assert_sound(target, mutated(rng.choice(seeds), rng, MAX_INPUT_BYTES // 8))
        assert_sound(target, blind)

    check()


def test_a_mutation_is_the_same_for_the_same_seed_and_keeps_to_its_size() -> None:
    seed = b'{"user_message": "I moved to Porto", "entities": [1, {"a": null}]}\nUSER: hi'
    made = [mutated(seed, random.Random(n), 500) for n in range(300)]
    assert made == [mutated(seed, random.Random(n), 500) for n in range(300)]
    assert len(set(made)) > 200 and max(map(len, made)) <= 500
    assert any(token.encode() in data for token in TOKENS if len(token) > 8 for data in made)


def burn(_: bytes) -> None:
    while True:
        pass


def hoard(_: bytes) -> None:
    """More than earlier tests can have left free in the heap: what the process has already is not bounded."""
    [bytes(1 << 28) for _ in range(64)]


@pytest.mark.parametrize(("work", "fault"), [(burn, TooSlow), (hoard, MemoryError)])
def test_what_takes_too_long_or_too_much_is_a_fault(work: Callable[[bytes], None], fault: type[Exception]) -> None:
    with pytest.raises(fault), bounds(cpu_seconds=1, megabytes=64):
        work(b"")
    with bounds():
        time.sleep(0)


def fuzz_and_replay(target: Target, seconds: float, folder: Path) -> dict[str, object]:
    """Fuzz; what was found fails without the fuzzer too, or goes: it is fixed, or was slow on a busy machine."""
    found = fuzz(target, max(1, round(seconds)), folder / target.name)
    for path in found.faulty:
        command = [sys.executable, "-m", "tests.trust.fuzz.replay", target.name, str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, f"{path}\n{done.stdout[-4_000:]}"
        if found.exit_code == 0:
            path.unlink()
    assert found.exit_code == 0, f"only under the fuzzer: {found.output[-4_000:]}"
    assert found.executions
    return {"inputs": found.executions, "features": found.features, "kept": found.kept}


@pytest.mark.slow
def test_a_short_fuzzing_keeps_what_reaches_something_new(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    slow = tmp_path / "manifests" / "faults" / "slow-unit-1"
    slow.parent.mkdir(parents=True)
    slow.write_bytes(b"{}")
    fuzz_and_replay(TARGETS["manifests"], 3, tmp_path)
    assert not slow.exists()
    count = fuzz_and_replay(TARGETS["manifests"], 1, tmp_path)  # from what the first one kept
    assert count["inputs"] and count["kept"] == len(list((tmp_path / "manifests" / "corpus").iterdir())) > 0


def breaks(data: bytes) -> None:
    if b"x" in data:
        raise ValueError("an x")
    if b"y" in data:
        raise ValueError("a y")


def test_the_input_of_a_fault_shrinks_to_what_fails_in_the_same_line_until_it_is_fixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "crash-1"
    path.write_bytes(b"aaaaxbbbybbb")
    for _ in range(2):
        assert replay(Target("manifests", breaks, lambda: [b"{}"]), path) == 1
        assert path.read_bytes() == b"x" and "ValueError: an x" in capsys.readouterr().err
    assert replay(TARGETS["manifests"], path) == 0


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@each_target
def test_no_input_breaks_a_parser(target: Target, night: Night) -> None:
    seconds = 60 * MINUTES * night.scale / len(TARGETS)
    night.record(target=target.name, **fuzz_and_replay(target, seconds, FUZZED))
