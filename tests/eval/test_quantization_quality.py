"""Divergence and perplexity of one GGUF from another, beside an independent computation in transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.answers.rows import answer_of, rows_of_split, take
from eval.quantizations.quality import Position, TokenRow, compare_position, measure_quality, plan_batches, summarize
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.export.quantize.quantize import quantize
from observer.paths import NANO_BASE
from observer.prompts import IM_END, Task, exchange_of, render_prompt
from tests.support.noise import with_noise

NOISY_TENSOR = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return take(rows_of_split("val"), 3)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quality")


def log_probabilities(folder: Path, rows: Sequence[dict[str, Any]], weights: dict[str, Any] | None = None):
    """For each row: log-softmax at the positions of its answer in float64, and the answer's tokens, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    if weights:
        model.load_state_dict(weights, strict=False)
    for row in rows:
        prompt = tokenizer(render_prompt(Task(row["task"]), exchange_of(row)))["input_ids"]
        answer = tokenizer(answer_of(row) + IM_END)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        yield torch.log_softmax(logits.double(), -1).numpy(), np.array(answer)


def independent(one: Any, other: Any) -> dict[str, float]:
    """The figures from two runs of `log_probabilities`."""
    kld, base, model, same = [], [], [], []
    for (p, answer), (q, _) in zip(one, other, strict=True):
        kld += list((np.exp(p) * (p - q)).sum(-1))
        base += list(p[np.arange(len(answer)), answer])
        model += list(q[np.arange(len(answer)), answer])
        same += list(p.argmax(-1) == q.argmax(-1))
    return {
        "n_tokens": len(kld),
        "ppl": math.exp(-np.mean(model)),
        "ppl_base": math.exp(-np.mean(base)),
        "ppl_ratio": math.exp(np.mean(base) - np.mean(model)),
        "mean_kld": float(np.mean(kld)),
        "max_kld": max(kld),
        "kld_p50": float(np.median(kld)),
        "same_top_p": float(np.mean(same)),
        "rms_delta_p": float(np.sqrt(np.mean((np.exp(model) - np.exp(base)) ** 2))),
    }


def test_the_figures_are_those_that_transformers_gives(nano_gguf: Path, work: Path, rows: list[dict[str, Any]]) -> None:
    noisy = with_noise(work / "noisy", NOISY_TENSOR, 3.0)
    found = asdict(measure_quality(nano_gguf, write_gguf(noisy, work / "noisy.gguf", "f32", name="nano"), rows))
    expected = independent(log_probabilities(NANO_BASE, rows), log_probabilities(noisy, rows))
    assert expected["mean_kld"] > 0.01
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.01), name


def test_a_quantization_diverges_as_its_dequantized_weights_do(
    nano_gguf: Path, work: Path, rows: list[dict[str, Any]]
) -> None:
    """llama.cpp also rounds the activations, to 8 bits, which the computation in float32 does not see."""
    path = work / "q4_0.gguf"
    quantize(nano_gguf, path, "q4_0")
    found = measure_quality(nano_gguf, path, rows)
    expected = independent(log_probabilities(NANO_BASE, rows), log_probabilities(NANO_BASE, rows, dequantized(path)))
    assert found.mean_kld == pytest.approx(expected["mean_kld"], rel=0.2)
    assert found.ppl == pytest.approx(expected["ppl"], rel=0.05)
    assert found.same_top_p == pytest.approx(expected["same_top_p"], abs=0.03)


def dequantized(path: Path) -> dict[str, Any]:
    """A GGUF's weights in float32 under their Hugging Face names."""
    import gguf
    import torch
    from gguf.quants import dequantize
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 64)
    (file,) = NANO_BASE.glob("*.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights = {}
    with safe_open(file, "pt") as checkpoint:
        for name in list(checkpoint.keys()):
            stem, _, suffix = name.rpartition(".")
            tensor = tensors[f"{names.get_name(stem)}.{suffix}"]
            values = dequantize(tensor.data, tensor.tensor_type)
            weights[name] = torch.from_numpy(values.copy()).reshape(checkpoint.get_slice(name).get_shape())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def test_a_file_does_not_diverge_from_itself_at_all(nano_gguf: Path, rows: list[dict[str, Any]]) -> None:
    quality = measure_quality(nano_gguf, nano_gguf, rows)
    assert quality.mean_kld == quality.max_kld == quality.rms_delta_p == 0
    assert quality.same_top_p == quality.ppl_ratio == 1


def test_another_vocabulary_is_refused_in_one_line(nano_gguf: Path, tiny_gguf: Path) -> None:
    fault = r"tiny-f16\.gguf: its vocabulary \(512 tokens\) is not that of .*2,048"
    with pytest.raises(ObserverError, match=fault) as error:
        measure_quality(nano_gguf, tiny_gguf, [{}])
    assert "\n" not in str(error.value)


def test_no_rows_and_rows_too_long_are_refused(nano_gguf: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ObserverError, match="no rows"):
        measure_quality(nano_gguf, nano_gguf, [])
    long = rows[0] | {"id": "long-one", "completion": [{"role": "assistant", "content": "word " * 3000}]}
    with pytest.raises(ObserverError, match=r"row long-one: \d,\d{3} tokens"):
        measure_quality(nano_gguf, nano_gguf, [rows[1], long])


def test_the_plan_reads_every_row_once_and_shares_what_a_batch_begins_with() -> None:
    rows = [TokenRow([1, 2, 3, n], [7, 8, n]) for n in range(100)] + [TokenRow([1, 2], [9])]
    batches = plan_batches(rows)
    assert sorted(token for batch in batches for token in batch.gold) == sorted(n for row in rows for n in row.answer)
    for batch in batches:
        assert sum(token.wants_logits for token in batch.tokens) == len(batch.gold)
        own = [token for token in batch.tokens if len(token.sequences) == 1]
        assert {token.sequences[0] for token in own} == set(range(batch.n_rows))
    assert plan_batches(rows) == batches


def test_one_position_by_hand() -> None:
    """Base (1/2, 1/4, 1/4), model (1/4, 1/2, 1/4): ½ log 2 − ¼ log 2 = ¼ log 2."""
    base, model = (np.log(np.array(shares, np.float32)) for shares in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    found = compare_position(base + 3, model - 5, 1)
    assert found.kld == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert math.exp(found.logprob_base) == pytest.approx(0.25)
    assert math.exp(found.logprob) == pytest.approx(0.5)
    assert not found.has_same_top


def test_the_summary_by_hand() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    quality = summarize(
        [Position(0.0, half, half, True), Position(0.3, half, quarter, False), Position(0.6, quarter, half, True)]
    )
    assert quality.n_tokens == 3
    assert quality.ppl == quality.ppl_base == pytest.approx(2 ** (4 / 3))
    assert quality.mean_kld == pytest.approx(0.3)
    assert (quality.kld_p50, quality.max_kld) == (0.3, 0.6)
    assert quality.kld_p90 == pytest.approx(0.54)
    assert quality.same_top_p == pytest.approx(2 / 3)
    assert quality.rms_delta_p == pytest.approx(math.sqrt((0.25**2 + 0.25**2) / 3))
