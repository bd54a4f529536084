"""The architectures we train and export, and all that differs between them: to add one, add an entry.

They share a body: RMS norms, grouped heads with RoPE, a gated MLP, a head that may be tied to the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf

from observer.errors import ObserverError

ROPE_FACTORS = "rope_freqs.weight"
"""What a GGUF holds beside the tensors of a checkpoint, where its RoPE is scaled."""


@dataclass(frozen=True)
class Architecture:
    """One family of models. `model_type` and `class_name` are transformers' names of it, `gguf_arch` is gguf's."""

    model_type: str
    class_name: str
    gguf_arch: gguf.MODEL_ARCH
    has_head_norms: bool = False
    """An RMS norm over each head's query and key."""
    has_qkv_bias: bool = False
    has_own_head_size: bool = True
    """config.json may say another size of a head than hidden size / heads."""
    has_paired_rows: bool = False
    """In GGUF the rows of a query or key head stand in pairs: the first of each half, the second of each half, …"""
    says_rope_size: bool = False
    """Its GGUF repeats the size of a head as rope.dimension_count, and the size of the vocabulary."""
    has_scaled_rope: bool = False
    """RoPE of type llama3 is known, beside the default one."""

    @property
    def gguf_name(self) -> str:
        """As in general.architecture and in front of the keys."""
        return gguf.MODEL_ARCH_NAMES[self.gguf_arch]

    def pairs_rows_of(self, module: str) -> bool:
        """Whether this module's rows stand in another order in GGUF; see `has_paired_rows`."""
        return self.has_paired_rows and module.endswith(("self_attn.q_proj", "self_attn.k_proj"))


QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM", gguf.MODEL_ARCH.QWEN3, has_head_norms=True)
QWEN2 = Architecture(
    "qwen2", "Qwen2ForCausalLM", gguf.MODEL_ARCH.QWEN2, has_qkv_bias=True, has_own_head_size=False
)  # fmt: skip
LLAMA = Architecture(
    "llama", "LlamaForCausalLM", gguf.MODEL_ARCH.LLAMA,
    has_paired_rows=True, says_rope_size=True, has_scaled_rope=True,
)  # fmt: skip

ARCHITECTURES = {entry.model_type: entry for entry in (QWEN3, QWEN2, LLAMA)}


def architecture_of_gguf(name: object) -> Architecture | None:
    """By the name in general.architecture; None for one that is not ours."""
    return next((entry for entry in ARCHITECTURES.values() if entry.gguf_name == name), None)


def architecture_of(model_type: object, place: object) -> Architecture:
    """By the `model_type` of config.json. Raises ObserverError, naming `place`, for one that is not ours."""
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ObserverError(
            f"{place}: model_type is {str(model_type)[:40]!r}; take a model of type {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]
