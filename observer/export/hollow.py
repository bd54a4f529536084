"""A GGUF whose tensors are holes: llama.cpp reads its shapes, and no disk is taken."""

from __future__ import annotations

import math
import os
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from observer.export.checkpoint import list_tensors, read_shape


def write_hollow_gguf(folder: Path, out: Path) -> Path:
    """Write the head of the f16 GGUF of a Hugging Face folder, without its vocabulary, and zeros for its tensors.

    Enough for the quantizer's dry run, which reads no tensor. Raises ObserverError for a folder that is no Qwen3.
    """
    shape = read_shape(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, shape.block_count)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    writer.add_block_count(shape.block_count)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.embedding_length)
    writer.add_feed_forward_length(shape.feed_forward_length)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.head_count_kv)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_key_length(shape.key_length)
    writer.add_value_length(shape.key_length)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    total_bytes = 0
    for tensor in list_tensors(folder, shape):
        kind = GGMLQuantizationType.F16 if len(tensor.shape) > 1 else GGMLQuantizationType.F32
        byte_shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
        name = names.get_name(tensor.name, try_suffixes=(".weight",))
        assert name is not None, f"gguf knows no name for {tensor.name}"
        writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), math.prod(byte_shape), kind)
        total_bytes += gguf.GGUFWriter.ggml_pad(math.prod(byte_shape), gguf.GGUF_DEFAULT_ALIGNMENT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(out, out.stat().st_size + total_bytes + gguf.GGUF_DEFAULT_ALIGNMENT)
    return out
