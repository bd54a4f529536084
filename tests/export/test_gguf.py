"""The converter writes what llama.cpp's own would: the same values, keys and tokens, or one clear line and no file."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from observer.engine.llama_model import LlamaModel
from observer.errors import ObserverError
from observer.export.gguf.verify import verify_gguf
from observer.export.gguf.write import FILE_TYPES, write_gguf
from observer.paths import PROJECT_ROOT
from observer.prompts import CHAT_TEMPLATE, IM_END, IM_START, Task, render_exchange, render_prompt
from observer.weights.gguf_header import read_header
from tests.support.models import Spoil, assert_same_ids, edit_json, edit_weights, llama_logits

TIED = pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
QWEN2_VOCAB = PROJECT_ROOT.parent / "shared" / "qwen2-vocab"


@pytest.fixture
def model(is_tied: bool, tiny_model: Path, untied_model: Path) -> Path:
    return tiny_model if is_tied else untied_model


@TIED
@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_tensors_are_those_of_the_checkpoint(model: Path, is_tied: bool, file_type: str, tmp_path: Path) -> None:
    out = write_gguf(model, tmp_path / "model.gguf", file_type, name="tiny")
    weights = load_file(model / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    expected = {names.get_name(name, (".weight",)): weights[name] for name in sorted(weights)}
    tensors = gguf.GGUFReader(out).tensors
    assert [tensor.name for tensor in tensors] == list(expected)
    assert ("output.weight" in expected) is not is_tied
    for tensor in tensors:
        value = expected[tensor.name].float().numpy()
        kind = gguf.GGMLQuantizationType.F32 if value.ndim == 1 else FILE_TYPES[file_type][0]
        assert tensor.tensor_type == kind
        assert tuple(tensor.shape) == value.shape[::-1]
        assert np.array_equal(tensor.data, gguf.quants.quantize(value, kind))


def test_a_sharded_bfloat16_checkpoint_gives_the_same_bytes_as_a_whole_one(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    files = []
    for name, size in (("whole", "1GB"), ("shards", "300KB")):
        folder = Path(shutil.copytree(tiny_model, tmp_path / name))
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=size)
        files.append(write_gguf(folder, tmp_path / f"{name}.gguf", "bf16", name="tiny"))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_keys_and_their_order(tiny_gguf: Path) -> None:
    metadata = read_header(tiny_gguf).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert list(metadata) == [
        "general.architecture", "general.type", "general.name", "general.size_label",
        "qwen3.block_count", "qwen3.context_length", "qwen3.embedding_length", "qwen3.feed_forward_length",
        "qwen3.attention.head_count", "qwen3.attention.head_count_kv", "qwen3.rope.freq_base",
        "qwen3.attention.layer_norm_rms_epsilon", "qwen3.attention.key_length", "qwen3.attention.value_length",
        "general.file_type", "general.quantization_version",
        "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.add_bos_token", "tokenizer.chat_template",
    ]  # fmt: skip
    assert metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert tokens[metadata["tokenizer.ggml.eos_token_id"]] == IM_END
    assert types[tokens.index(IM_START)] == gguf.TokenType.CONTROL
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def test_our_header_reader_agrees_with_gguf_s(tiny_gguf: Path) -> None:
    reader, header = gguf.GGUFReader(tiny_gguf), read_header(tiny_gguf)
    for key, value in header.metadata.items():
        field = reader.get_field(key)
        assert field is not None and field.contents() == value
    assert header.tensor_types == {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def test_ids_beyond_the_tokenizer_become_unused_padding_tokens(tiny_gguf: Path, tiny_model: Path) -> None:
    n_known = len(AutoTokenizer.from_pretrained(tiny_model))
    metadata = read_header(tiny_gguf).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == 512 > n_known
    assert tokens[n_known:] == [f"[PAD{number}]" for number in range(n_known, 512)]
    assert set(types[n_known:]) == {gguf.TokenType.UNUSED}


def test_qwens_own_template_and_end_token_are_replaced_and_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template, tokenizer.eos_token = "{{ tools }}<think></think>", "<|endoftext|>"
    tokenizer.save_pretrained(copy)
    out = write_gguf(copy, copy.parent / "model.gguf", name="tiny")
    assert "replaced by ours" in capsys.readouterr().err
    verify_gguf(out, expected_file_type="f16")


@pytest.mark.skipif(not QWEN2_VOCAB.exists(), reason="Qwen's vocabulary is not beside the checkout")
@pytest.mark.slow
def test_token_ids_agree_on_hostile_text_with_qwens_real_vocabulary(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(QWEN2_VOCAB, gguf_file="ggml-vocab-qwen2.gguf")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(151_936, mean_resizing=False)
    model.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    assert_same_ids(tokenizer, LlamaModel(write_gguf(tmp_path / "merged", tmp_path / "model.gguf", "q8_0", name="big")))


@TIED
@pytest.mark.parametrize(("file_type", "tolerance"), [("f32", 2e-3), ("f16", 4e-3), ("bf16", 2e-2), ("q8_0", 3e-2)])
def test_llama_cpp_computes_the_logits_of_transformers(
    model: Path, file_type: str, tolerance: float, tmp_path: Path
) -> None:
    path = write_gguf(model, tmp_path / "model.gguf", file_type, name="tiny")
    tokens = LlamaModel(path).tokenize(render_prompt(Task.EXTRACT, render_exchange("I moved to Lisbon", "Nice!")))
    with torch.no_grad():
        of_torch = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        expected = of_torch(torch.tensor([tokens])).logits[0].numpy()
    found = llama_logits(path, tokens)
    assert np.abs(found - expected).max() < tolerance
    if file_type in ("f32", "f16"):
        margins = np.diff(np.sort(expected)[:, -2:])[:, 0]
        is_clear = margins > 2 * tolerance
        assert is_clear.mean() > 0.8
        assert np.array_equal(found.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])


# Bad input: one clear line that names the place, and no file.

NORM = "model.norm.weight"
FAULTS: list[tuple[Spoil, str]] = [
    (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "a LoRA adapter, not a model"),
    (edit_json("config.json", head_dim=None), "'head_dim' is missing"),
    (edit_json("config.json", quantization_config={"load_in_4bit": True}), "quantized weights"),
    (edit_json("config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "rope_type 'yarn'"),
    (edit_json("config.json", vocab_size=100), r"embed_tokens.weight is \(512, 256\), config.json says \(100, 256\)"),
    (edit_weights(lambda weights: weights.pop(NORM)), f"tensor {NORM} is missing"),
    (edit_weights(lambda weights: weights.update(score=torch.ones(2))), "tensor score has no GGUF name"),
    (edit_weights(lambda weights: weights.update({NORM: torch.ones(2)})), rf"{NORM} is \(2,\)"),
    (
        edit_json("tokenizer.json", pre_tokenizer={"type": "Whitespace"}),
        "no byte-level BPE of the kinds qwen2, smollm, llama-bpe",
    ),
    (edit_json("tokenizer.json", added_tokens=[]), "a control token of the prompt"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_faulty_folder_gets_one_clear_line_and_no_file(copy: Path, spoil: Spoil, message: str) -> None:
    spoil(copy)
    with pytest.raises(ObserverError, match=message):
        write_gguf(copy, copy.parent / "out" / "model.gguf", name="tiny")
    assert not list(copy.parent.glob("out/*"))


def test_all_faults_of_the_weights_are_told_at_once(copy: Path) -> None:
    edit_weights(lambda weights: [weights.pop(NORM), weights.update(score=torch.ones(2))])(copy)
    with pytest.raises(ObserverError, match=r"is missing\n.*has no GGUF name"):
        write_gguf(copy, copy.parent / "model.gguf", name="tiny")


def test_an_unknown_type_is_told_with_those_converted(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ObserverError, match="'q4_k_m'; converted are f32, bf16, f16, q8_0"):
        write_gguf(tiny_model, tmp_path / "model.gguf", "q4_k_m", name="tiny")
