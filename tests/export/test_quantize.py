"""llama.cpp quantizes what we converted; the report says what is in the file, and a bad file does not pass."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import gguf
import pytest

from observer.errors import ObserverError
from observer.export.gguf.verify import verify_gguf
from observer.export.gguf.write import write_gguf
from observer.export.quantize.imatrix import compute_imatrix
from observer.export.quantize.imatrix_file import write_imatrix
from observer.export.quantize.quantize import Job, quantize, run_job, takes_imatrix
from observer.weights.gguf_header import read_header
from observer.weights.gguf_types import NEED_IMATRIX, file_types, quantization_faults, wants_imatrix
from tests.conftest import make_tiny_model


def test_names_are_llama_cpp_s() -> None:
    known = file_types()
    assert {"f16": 1, "q8_0": 7, "q4_k_m": 15, "iq4_xs": 30, "bf16": 32}.items() <= known.items()
    assert not known.keys() & {"guessed", "nvfp4", "q2_0", "mxfp4_moe"}
    assert known.keys() > NEED_IMATRIX


@pytest.mark.parametrize(
    ("quantization", "types"),
    [
        ("q8_0", {"F32": 9, "Q8_0": 15}),
        ("q6_k", {"F32": 9, "Q6_K": 15}),
        ("q4_k_m", {"F32": 9, "Q4_K": 12, "Q6_K": 3}),
        ("iq4_xs", {"F32": 9, "IQ4_XS": 14, "Q6_K": 1}),
        ("bf16", {"F32": 9, "BF16": 15}),
    ],
)
def test_a_quantization_is_reported_as_it_is_in_the_file_and_llama_cpp_runs_it(
    tiny_gguf: Path, tmp_path: Path, quantization: str, types: dict[str, int]
) -> None:
    out = tmp_path / "new" / "model.gguf"
    assert quantize(tiny_gguf, out, quantization) == ()
    assert Counter(read_header(out).tensor_types.values()) == types
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]
    verify_gguf(out, expected_file_type=quantization)


def test_our_q8_0_is_llama_cpp_s(tiny_model: Path, tmp_path: Path) -> None:
    """From the same f32 weights; blocks whose scale lies half-way between two halves may round apart."""
    whole = write_gguf(tiny_model, tmp_path / "f32.gguf", "f32", name="tiny")
    ours = write_gguf(tiny_model, tmp_path / "ours.gguf", "q8_0", name="tiny")
    quantize(whole, tmp_path / "theirs.gguf", "q8_0")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
    for tensor in gguf.GGUFReader(ours).tensors:
        assert theirs[tensor.name].tensor_type == tensor.tensor_type
        assert (theirs[tensor.name].data == tensor.data).mean() > 0.9999


def test_rows_that_do_not_divide_by_256_are_reported_as_fallbacks(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", intermediate_size=320, num_hidden_layers=1)
    source = write_gguf(model, tmp_path / "f16.gguf", name="tiny")
    (fallback,) = quantize(source, tmp_path / "q4_k_m.gguf", "q4_k_m")
    name, kind = fallback.split(": ")
    assert name == "blk.0.ffn_down.weight"
    assert read_header(tmp_path / "q4_k_m.gguf").tensor_types[name] == kind == "Q8_0"


def test_types_that_cannot_be_made_are_told_all_at_once_before_any_work(tmp_path: Path) -> None:
    expected = [
        "unknown quantization 'Q4_K_M'; did you mean 'q4_k_m'",
        "unknown quantization 'q4km'; did you mean 'q4_k_m'",
        "unknown quantization 'int8'; allowed: ",
        "quantization 'iq2_xxs' needs an importance matrix",
    ]
    faults = quantization_faults(["Q4_K_M", "q4km", "q8_0", "int8", "iq2_xxs"])
    assert len(faults) == len(expected) and all(map(str.startswith, faults, expected)), faults
    with pytest.raises(ObserverError, match=faults[1]):
        quantize(tmp_path / "missing.gguf", tmp_path / "out.gguf", "q4km")


@pytest.mark.parametrize("name", sorted(NEED_IMATRIX))
def test_llama_cpp_does_refuse_these_without_an_importance_matrix(tiny_gguf: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ObserverError, match="requires an imatrix"):
        run_job(Job(str(tiny_gguf), str(tmp_path / "out.gguf"), file_types()[name], None, {}))


def test_a_quantized_source_a_missing_one_and_one_that_is_no_gguf_are_told(tiny_gguf: Path, tmp_path: Path) -> None:
    quantize(tiny_gguf, tmp_path / "q8_0.gguf", "q8_0")
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "empty.gguf").touch()
    for name, message in {
        "q8_0": "found type q8_0; quantize from f32, f16, bf16",
        "missing": "missing.gguf: no such file",
        "text": "not a whole GGUF",
        "empty": "not a whole GGUF",
    }.items():
        with pytest.raises(ObserverError, match=message):
            quantize(tmp_path / f"{name}.gguf", tmp_path / "out.gguf", "q4_k_m")
    assert not (tmp_path / "out.gguf").exists()


def test_a_cut_source_fails_in_llama_cpp_s_words_and_leaves_no_file(
    tiny_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "cut.gguf"
    source.write_bytes(tiny_gguf.read_bytes()[:-100_000])
    with pytest.raises(
        ObserverError, match=r"cut\.gguf: llama\.cpp could not quantize it(.|\n)*not within the file bounds"
    ):
        quantize(source, tmp_path / "out.gguf", "q4_k_m")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_ends_it_and_leaves_no_file(tiny_gguf: Path, tmp_path: Path) -> None:
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        quantize(tiny_gguf, tmp_path / "out.gguf", "q4_k_m")
    timer.join()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def imatrix(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    return write_imatrix(compute_imatrix(tiny_model, [list(range(3, 99)), list(range(200, 300))]), path)


def test_a_type_below_5_bits_gets_the_imatrix_and_the_others_do_not() -> None:
    with_it = {name for name in file_types() if wants_imatrix(name)}
    assert with_it >= NEED_IMATRIX | {"q4_k_m", "q4_0", "iq4_xs", "q3_k_l", "q2_k"}
    assert not with_it & {"f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_0", "tq1_0", "tq2_0"}
    overrides = {"ffn_down": "iq2_s"}  # any type may be given to a tensor of any file that is quantized
    assert [takes_imatrix(name, overrides) for name in ("q8_0", "q4_k_m", "f16")] == [True, True, False]


def test_all_that_is_wrong_with_a_request_is_told_at_once(tiny_gguf: Path) -> None:
    overrides = {"ffn_(": "q8_0", "attn_v": "q9_k", "ffn_up": "iq2_s", "lm_head": "q8_0", "attn_norm": "q8_0"}
    with pytest.raises(ObserverError) as raised:
        quantize(tiny_gguf, tiny_gguf.with_name("out.gguf"), "iq1_s", overrides=overrides)
    expected = [
        "quantization 'iq1_s' needs an importance matrix",
        "export.tensor_types: 'ffn_(': not a regular expression (",
        "export.tensor_types: 'attn_v': unknown type 'q9_k'; did you mean 'q",
        "export.tensor_types: 'ffn_up': type 'iq2_s' needs an importance matrix",
        f"export.tensor_types: 'lm_head' is in no tensor of {tiny_gguf}",
        "export.tensor_types: 'attn_norm' is in no tensor of",  # one-dimensional: never quantized
    ]
    faults = str(raised.value).splitlines()
    assert len(faults) == len(expected) and all(map(str.startswith, faults, expected)), faults


def test_overrides_are_what_the_file_holds(tiny_gguf: Path, tmp_path: Path) -> None:
    overrides = {r"ffn_down": "q6_k", "token_embd": "q8_0"}
    quantize(tiny_gguf, tmp_path / "out.gguf", "q4_k_s", overrides=overrides)
    types = read_header(tmp_path / "out.gguf").tensor_types
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.ffn_down.weight"] == types["blk.1.ffn_down.weight"] == "Q6_K"
    assert types["blk.0.ffn_up.weight"] == "Q4_K"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file_types()))
def test_every_type_is_made_and_llama_cpp_runs_it(tiny_gguf: Path, imatrix: Path, tmp_path: Path, name: str) -> None:
    assert not quantize(tiny_gguf, tmp_path / "out.gguf", name, imatrix=imatrix)
    is_told = "quantize.imatrix.entries_count" in read_header(tmp_path / "out.gguf").metadata
    assert is_told == wants_imatrix(name)
    verify_gguf(tmp_path / "out.gguf", expected_file_type=name)
