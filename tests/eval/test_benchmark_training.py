"""The training benchmark: its reading of records, and that every trainer in it does the same work."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from eval.benchmarks.harness import Record
from eval.benchmarks.random_base import parse_shape, random_base
from eval.benchmarks.training.benchmark import main
from eval.benchmarks.training.child import plain_nll, reset_adapter
from eval.benchmarks.training.report import sections, standings, summary
from eval.benchmarks.training.trainers import Entrant, parse_entrants
from eval.metrics.spread import Spread
from observer.errors import ObserverError
from observer.files import write_jsonl
from observer.training.rows import TokenRow
from observer.weights.base import load_tokenizer
from tests.support.tiny_runs import split_rows

TINY = "0.6b:block_count=2,embedding_length=256,feed_forward_length=256,head_count=4,head_count_kv=2,key_length=64"


def round_record(label: str, number: int, seconds: float, rows: int = 24) -> Record:
    taken = {"seconds": seconds, "cpu_seconds": seconds, "steps": 3, "rows": rows, "peak_bytes": 10**9, "train_loss": 1}
    return {"kind": "round", "entrant": label, "round": number} | taken


def test_an_entrant_takes_the_batch_size_of_its_kind_or_the_one_behind_the_at_sign() -> None:
    entrants = parse_entrants(["ours", "ours@32", "first-version", "unsloth-tuned"], 8)
    assert [(entrant.label, entrant.kind, entrant.batch_size) for entrant in entrants] == [
        ("ours", "ours", 8),
        ("ours@32", "ours", 32),
        ("first-version", "first-version", 4),
        ("unsloth-tuned", "unsloth-tuned", 16),
    ]


def test_every_unknown_entrant_is_named_at_once() -> None:
    with pytest.raises(ObserverError, match=r"axolotl: known: trl, [\s\S]*ours@many: known: trl"):
        parse_entrants(["axolotl", "ours@many"], 8)


def test_ratios_pair_the_rounds_of_one_turn_and_speed_counts_real_tokens() -> None:
    records = [
        round_record("trl", 1, 10.0),
        round_record("ours", 1, 2.0),
        round_record("trl", 2, 40.0),  # the machine slowed down, for both alike
        round_record("ours", 2, 8.0),
        round_record("trl", 3, 12.0),  # ours was cut before its third round
    ]
    trl, ours = standings([Entrant("trl", "trl", 8), Entrant("ours", "ours", 8)], records, tokens=1000)
    assert ours.ratios == {"trl": Spread(5.0, 5.0, 5.0)}
    assert ours.tokens_per_s == Spread(125.0, 312.5, 500.0)
    assert trl.n_rounds == 3 and ours.n_rounds == 2


def test_the_report_marks_another_loss_a_failure_and_rows_that_were_left_out() -> None:
    start = {"kind": "start", "nll_before": 2.0, "probe_loss": 2.0, "probe_grad_norm": 1.0}
    records: list[Record] = [
        start | {"entrant": "trl"},
        start | {"entrant": "first-version", "probe_loss": 3.0},
        start | {"entrant": "ours", "probe_grad_norm": 0.5},
        {"kind": "failed", "entrant": "unsloth", "error": "unsloth is not installed"},
        *(round_record(label, 1, 2.0) for label in ("trl", "first-version")),
        round_record("ours", 1, 1.0, rows=20),
    ]
    found = standings(parse_entrants(["trl", "first-version", "ours", "unsloth"], 8), records, tokens=1000)
    text = "\n".join(sections(found, 24))
    assert "3.0000 (another loss)" in text
    assert "0.5000 (-50.000 %)" in text
    assert "20 (of 24!)" in text
    assert "- `unsloth`: unsloth is not installed" in text
    assert summary(found)["failed"] == {"unsloth": "unsloth is not installed"}


def test_a_shape_is_a_size_with_changes_and_its_faults_come_together() -> None:
    shape = parse_shape("0.6B:block_count=2,vocab_size=4096")
    assert (shape.block_count, shape.vocab_size, shape.embedding_length) == (2, 4096, 1024)
    assert parse_shape("4b").block_count == 36
    assert parse_shape("0.6b:is_tied=0").is_tied is False  # transformers takes no 0 for it
    with pytest.raises(ObserverError, match=r"unknown size '0.7b'[\s\S]*'depth=3' is not KEY=NUMBER"):
        parse_shape("0.7b:depth=3")


def test_a_random_base_is_made_once_and_loads_as_a_qwen3(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = random_base(f"{TINY},vocab_size=2560", dtype="float32", root=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert model.config.vocab_size == 2560 and len(load_tokenizer(folder)) <= 2560
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert random_base(f"{TINY},vocab_size=2560", dtype="float32", root=tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ObserverError, match="vocab_size 100 is smaller than the tokenizer's"):
        random_base(f"{TINY},vocab_size=100", root=tmp_path)


def test_the_yardstick_is_the_token_mean_of_the_completions_and_every_adapter_starts_alike(tiny_model: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model, local_files_only=True)
    rows = [TokenRow([5, 6, 7, 8, 9], 3, "grade"), TokenRow([9, 8, 7, 6, 5, 4, 3], 2, "extract")]
    expected, n_scored = 0.0, 0
    for row in rows:
        logits = base(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        for place in range(row.prompt_length, len(row)):
            expected, n_scored = expected - logits[place - 1, row.input_ids[place]].item(), n_scored + 1
    assert plain_nll(base, rows, "float32") == pytest.approx(expected / n_scored, rel=1e-5)

    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))
    reset_adapter(model, 1)
    first = {name: value.clone() for name, value in model.named_parameters() if "lora" in name}
    assert plain_nll(model, rows, "float32") == pytest.approx(expected / n_scored, rel=1e-5)  # B is zero
    reset_adapter(model, 2, b_std=0.5)
    assert plain_nll(model, rows, "float32") != pytest.approx(expected / n_scored, rel=1e-5)
    reset_adapter(model, 1)
    assert all(torch.equal(value, first[name]) for name, value in model.named_parameters() if "lora" in name)


@pytest.mark.slow
def test_all_contestants_do_the_same_work(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "val"):
        write_jsonl(tmp_path / f"{name}.jsonl", split_rows(12))
    arguments = f"--base {tiny_model} --dtype float32 --batch-size 4 --val-rows 4 --rounds 1".split()
    arguments += ["--train", str(tmp_path / "train.jsonl"), "--val", str(tmp_path / "val.jsonl")]
    arguments += ["--out", str(tmp_path / "reports"), "--work", str(tmp_path / "work")]
    peers = ["unsloth-tuned"] if importlib.util.find_spec("unsloth") else []
    arguments += ["--contestants", ",".join(["trl", *peers, "ours"])]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == {}

    report = json.loads(next((tmp_path / "reports").glob("*.json")).read_text(encoding="utf-8"))
    found = {contestant["entrant"]["label"]: contestant for contestant in report["contestants"]}
    assert all(contestant["rows"] == 12 for contestant in found.values())
    trl, *others = (found[label]["start"] for label in ("trl", *peers, "ours"))
    for start in others:
        assert start["nll_before"] == trl["nll_before"]
        assert start["probe_loss"] == pytest.approx(trl["probe_loss"], rel=1e-5)
        assert start["probe_grad_norm"] == pytest.approx(trl["probe_grad_norm"], rel=1e-4)
