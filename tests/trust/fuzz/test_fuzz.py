"""Every parser of outside input takes any bytes: the targets of `fuzz.py`, from seeds and what once broke them."""

from __future__ import annotations

import faulthandler
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from observer.errors import ObserverError
from tests.trust.fuzz import fuzz
from tests.trust.fuzz.bounds import CPU_SECONDS, MAX_INPUT_BYTES, bounds, fault_of, smaller
from tests.trust.fuzz.mutations import TOKENS, mutated
from tests.trust.fuzz.targets import REGRESSIONS, TARGETS, Target, targets_named
from tests.trust.fuzz.texts import ACCEPTED
from tests.trust.result import load_results

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
    "modelfiles": ["parse_modelfile"],
    "gguf_files": ["check_is_gguf", "read_header"],
    "checkpoints": ["check_base", "read_shape", "list_tensors"],
    "tokenizers": ["add_vocabulary"],
    "adapters": ["read_lora"],
}
NEVER_BACK_S = 300
each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    """Code in C that never comes back ends the run, with a traceback."""
    faulthandler.dump_traceback_later(NEVER_BACK_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def assert_sound(target: Target, data: bytes) -> None:
    """Within three times the bound of `tests/trust/fuzz/fuzz.py`: a hang is seen, and a busy machine is none."""
    fault = fault_of(target.run, data, 3 * CPU_SECONDS)
    assert fault is None, f"{fault.signature}\n{fault.text}"


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
    @settings(max_examples=12, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
    def check(seed: int, blind: bytes) -> None:
        rng = random.Random(seed)
        assert_sound(target, mutated(rng.choice(seeds), rng, MAX_INPUT_BYTES // 8, [*seeds, blind]))
        assert_sound(target, blind)

    check()


def test_a_mutation_is_the_same_for_the_same_seed_and_keeps_to_its_size() -> None:
    seed = b'{"user_message": "I moved to Porto", "entities": [1, {"a": null}]}\nUSER: hi'
    made = [mutated(seed, random.Random(n), 500, [b"other"]) for n in range(300)]
    assert made == [mutated(seed, random.Random(n), 500, [b"other"]) for n in range(300)]
    assert len(set(made)) > 250 and max(map(len, made)) <= 500
    assert any(token.encode() in data for token in TOKENS if len(token) > 8 for data in made)


def test_a_fault_is_known_by_its_kind_and_place_and_shrinks() -> None:
    def breaks(data: bytes) -> None:
        if b"x" in data:
            targets_named([data.decode()])

    fault = fault_of(breaks, b"aaaaxbbbbbbb")
    assert fault and fault.kind == "ObserverError" and fault.text.rstrip().endswith("adapters")
    assert smaller(b"aaaaxbbbbbbb", lambda data: fault_of(breaks, data) is not None) == b"x"
    assert fault_of(breaks, b"aaaa") is None


def test_what_takes_too_long_or_too_much_is_a_fault() -> None:
    def burn(_: bytes) -> None:
        while True:
            pass

    def hoard(_: bytes) -> None:
        bytearray(1 << 30)

    assert (fault := fault_of(burn, b"", cpu_seconds=0.05)) and fault.kind == "TooSlow"
    assert (fault := fault_of(hoard, b"", megabytes=64)) and fault.kind == "MemoryError"
    with bounds():
        time.sleep(0)


def test_a_replay_tells_what_an_input_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"{}")
    assert fuzz.main(["--replay", "manifests", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: no fault\n"
    with pytest.raises(ObserverError, match="no such target; known: configs"):
        fuzz.main(["--replay", "manifest", str(path)])
    with pytest.raises(ObserverError, match="no such file"):
        fuzz.main(["--replay", "manifests", str(tmp_path / "none")])


@pytest.mark.slow
def test_a_short_fuzzing_writes_its_result(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    given = ["--minutes", "0.1", "--targets", "manifests", "--corpus", str(tmp_path), "--out", str(tmp_path / "trust")]
    assert fuzz.main(given) == 0
    result = load_results(tmp_path / "trust")["fuzz"]
    (count,) = result.details["targets"]
    assert result.passed and count["executions"] > 0 and count["findings"] == []
    assert list((tmp_path / "manifests" / "corpus").iterdir())
    assert json.loads((tmp_path / "trust" / "fuzz.json").read_text())["command"].startswith(
        "python -m tests.trust.fuzz.fuzz"
    )
