"""The importance matrix is what llama.cpp's imatrix tool would collect, is read back, and changes the weights."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from observer.engine.llama_model import LlamaModel
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.export.quantize.imatrix import compute_imatrix, sample_rows
from observer.export.quantize.imatrix_file import Imatrix, read_imatrix, write_imatrix
from observer.export.quantize.quantize import quantize
from observer.paths import NANO_BASE, PROJECT_ROOT
from observer.weights.gguf_header import read_header
from tests.support.models import edit_weights

PARTS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]


def random_rows(n_rows: int, vocab_size: int = 512) -> list[list[int]]:
    """Rows of unequal length, none a multiple of another."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, vocab_size, 16 + 7 * n).tolist() for n in range(n_rows)]


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, up to its name."""


Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
]  # fmt: skip


def collected_by_llama_cpp(path: Path, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """What the tool's `collect_imatrix` sums: the second operand of every product with a layer's weight.

    The scheduler's callback sees it inside llama.cpp's own graph; no code of ours computes an activation.
    """
    sums: dict[str, np.ndarray] = {}

    @llama_cpp.ggml_backend_sched_eval_callback
    def collect(pointer: int, is_question: bool, _: object) -> bool:
        tensor = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
        weight = tensor.src[0].contents.name.decode() if tensor.src[0] else ""
        is_layer = weight.startswith("blk.") and weight.endswith(".weight") and bool(tensor.src[1])
        is_product = is_layer and tensor.src[1].contents.ne[0] == tensor.src[0].contents.ne[0] and not is_norm(weight)
        if is_question or not is_product:
            return is_product or not is_question
        inputs = tensor.src[1].contents
        columns, n_tokens = inputs.ne[0], inputs.ne[1]
        assert inputs.type == llama_cpp.GGML_TYPE_F32 and tuple(inputs.nb)[:2] == (4, 4 * columns)
        data = ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_float))
        values = np.ctypeslib.as_array(data, (n_tokens, columns)).astype(np.float64)
        sums[weight] = sums.get(weight, 0) + (values**2).sum(0)
        return True

    model, params = LlamaModel(path), llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads = 256, 256, 256, 1
    params.flash_attn_type, params.cb_eval = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, collect
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    context: Any = llama_cpp.llama_init_from_model(model.handle, params)
    for row in rows:
        decode_whole(context, row)
    llama_cpp.llama_free(context)
    model.close()
    return sums


def is_norm(name: str) -> bool:
    return name.endswith("_norm.weight")


def decode_whole(context: Any, row: Sequence[int]) -> None:
    """With logits of every token, else the last layer would see only the last one."""
    memory: Any = llama_cpp.llama_get_memory(context)
    llama_cpp.llama_memory_clear(memory, True)
    batch = llama_cpp.llama_batch_init(len(row), 0, 1)
    batch.n_tokens = len(row)
    for place, token in enumerate(row):
        batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.logits[place] = token, place, 1, True
        batch.seq_id[place][0] = 0
    assert llama_cpp.llama_decode(context, batch) == 0
    llama_cpp.llama_batch_free(batch)


@pytest.mark.parametrize("base", ["tiny", "nano"])
def test_it_is_what_llama_cpp_collects_in_its_own_graph(base: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tiny_model if base == "tiny" else PROJECT_ROOT / NANO_BASE
    rows = random_rows(9)
    ours = compute_imatrix(folder, rows)
    theirs = collected_by_llama_cpp(write_gguf(folder, tmp_path / "f32.gguf", "f32", name="base"), rows)
    n_layers = 2 if base == "tiny" else 4
    assert ours.sums.keys() == theirs.keys() == {f"blk.{n}.{part}.weight" for n in range(n_layers) for part in PARTS}
    assert set(ours.counts.values()) == {sum(len(row) for row in rows)} and ours.n_rows == 9
    for name, sums in theirs.items():
        np.testing.assert_allclose(ours.sums[name], sums, rtol=1e-3)


def test_the_file_has_llama_cpps_keys_and_tensors_and_is_read_back(tiny_model: Path, tmp_path: Path) -> None:
    imatrix = compute_imatrix(tiny_model, random_rows(3))
    path = write_imatrix(imatrix, tmp_path / "imatrix.gguf", datasets=["data/train.jsonl"])
    header = read_header(path)
    assert {key: value for key, value in header.metadata.items() if key.startswith(("general", "imatrix"))} == {
        "general.type": "imatrix",
        "imatrix.datasets": ["data/train.jsonl"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 23,  # 16, 23 and 30 tokens
    }
    assert set(header.tensor_types.values()) == {"F32"}
    assert header.tensor_shapes["blk.1.ffn_down.weight.in_sum2"] == (1, 256)
    assert header.tensor_shapes["blk.1.ffn_down.weight.counts"] == (1, 1)
    back = read_imatrix(path)
    assert back.counts == imatrix.counts and back.n_rows == 3
    for name, sums in imatrix.sums.items():
        np.testing.assert_array_equal(back.sums[name], sums)
        np.testing.assert_allclose(back.mean_squares(name), sums / 69, rtol=1e-6)


def test_rows_are_drawn_by_seed_and_never_twice() -> None:
    rows = [[n] for n in range(50)]
    drawn = sample_rows(rows, 20, seed=1)
    assert drawn == sample_rows(rows, 20, seed=1) != sample_rows(rows, 20, seed=2)
    assert len({row[0] for row in drawn}) == 20
    assert sorted(list(row) for row in sample_rows(rows, 99, seed=1)) == rows


def test_it_reaches_the_quantizer_and_lowers_the_error_where_inputs_are_large(tiny_gguf: Path, tmp_path: Path) -> None:
    name, is_large = "blk.0.ffn_up.weight", np.arange(256) % 8 == 0
    weights = np.where(is_large, 1000, 1).astype(np.float32)
    sums = {f"blk.{n}.{part}.weight": weights for n in range(2) for part in PARTS}
    imatrix = write_imatrix(Imatrix(sums, dict.fromkeys(sums, 1), 1), tmp_path / "imatrix.gguf")
    errors = {}
    for label, used in (("with", imatrix), ("without", None)):
        quantize(tiny_gguf, tmp_path / f"{label}.gguf", "q4_k_m", imatrix=used)
        errors[label] = squared_errors(tiny_gguf, tmp_path / f"{label}.gguf", name)[is_large].sum()
    assert errors["with"] < 0.5 * errors["without"]
    metadata = read_header(tmp_path / "with.gguf").metadata
    assert (metadata["quantize.imatrix.entries_count"], metadata["quantize.imatrix.chunks_count"]) == (14, 1)
    assert "quantize.imatrix.entries_count" not in read_header(tmp_path / "without.gguf").metadata


def squared_errors(source: Path, quantized: Path, name: str) -> np.ndarray:
    """By column."""
    values = []
    for path in (source, quantized):
        tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
        values.append(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64))
    return ((values[0] - values[1]) ** 2).sum(0)


def test_one_of_another_model_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    sums = {"blk.0.attn_q.weight": np.ones(128, np.float32)}
    imatrix = write_imatrix(Imatrix(sums, dict.fromkeys(sums, 1), 1), tmp_path / "imatrix.gguf")
    with pytest.raises(ObserverError, match=r"imatrix\.gguf: lacks 14 layers of .*f16\.gguf, such as blk\."):
        quantize(tiny_gguf, tmp_path / "out.gguf", "iq2_xs", imatrix=imatrix)


def test_a_bad_file_is_told(tiny_model: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    good = write_imatrix(compute_imatrix(tiny_model, random_rows(1)), tmp_path / "good.gguf")
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:-2000])
    write_imatrix(Imatrix({"a": np.ones(4, np.float32)}, {"a": 0}, 1), tmp_path / "empty.gguf")
    write_imatrix(Imatrix({"a": np.full(4, np.nan, np.float32)}, {"a": 1}, 1), tmp_path / "nan.gguf")
    for path, words in {
        tmp_path / "missing.gguf": "no such file",
        tmp_path / "cut.gguf": "cut short",
        tmp_path / "empty.gguf": "a is no row of sums with its count",
        tmp_path / "nan.gguf": "a is no row of sums with its count",
        tiny_gguf: "general.type is 'model', not 'imatrix'",
    }.items():
        with pytest.raises(ObserverError, match=words):
            read_imatrix(path)


def test_no_rows_and_a_model_that_is_not_finite_are_told(copy: Path) -> None:
    with pytest.raises(ObserverError, match="no rows"):
        compute_imatrix(copy, [[]])
    edit_weights(lambda weights: weights["model.layers.0.mlp.up_proj.weight"].fill_(float("inf")))(copy)
    with pytest.raises(ObserverError, match=r"inputs of blk\.0\.ffn_down\.weight are not finite"):
        compute_imatrix(copy, random_rows(1))
