"""The GGUF types llama.cpp can make of a model: their names, and which of them need an importance matrix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import gguf
import llama_cpp

NEED_IMATRIX = frozenset("iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq2_m iq3_xxs iq3_xs q2_k_s".split())
"""Types llama.cpp refuses to write without an importance matrix."""

TENSORS_NEED_IMATRIX = frozenset("iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs".split())
"""Types of single tensors for which it refuses the same."""

UNQUANTIZED = ("f32", "f16", "bf16")

_NOT_FOR_US = {"nvfp4", "q2_0", "mxfp4_moe", "guessed"}
"""Refused by llama.cpp; unreadable to gguf; plain q8_0 on a dense model; no type at all."""

_NOT_FOR_TENSORS = re.compile(r"i\d+|f64|q8_1|q8_k|nvfp4")
"""Integers, and types llama.cpp has for intermediate results only, or refuses."""

_BELOW_5_BITS = re.compile(r"i?q[1-4]_")


def file_types() -> dict[str, int]:
    """Name -> llama.cpp's file type, such as `q4_k_m` -> 15, of every type that can be asked for."""
    prefix = re.compile(r"LLAMA_FTYPE_(?:MOSTLY_|ALL_)?")
    constants = {name: value for name, value in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    names = {prefix.sub("", name).lower(): value for name, value in constants.items()}
    return {name: value for name, value in names.items() if name not in _NOT_FOR_US}


def tensor_types() -> dict[str, gguf.GGMLQuantizationType]:
    """Name -> type of a single tensor, such as `q4_k` -> Q4_K, of every one that can be asked for."""
    names = {kind.name.lower(): kind for kind in gguf.GGMLQuantizationType}
    return {name: kind for name, kind in names.items() if not _NOT_FOR_TENSORS.fullmatch(name)}


def wants_imatrix(quantization: str) -> bool:
    """Whether the layers get fewer than 5 bits a weight: there an importance matrix pays, or is needed."""
    return bool(_BELOW_5_BITS.match(quantization))


def quantization_faults(quantizations: Sequence[str], *, has_imatrix: bool = False) -> list[str]:
    """A line for every type that cannot be made, with the nearest that can."""
    known = file_types()
    faults = []
    for name in quantizations:
        if name not in known:
            faults.append(f"unknown quantization {name!r}; {_nearest(name, list(known))}")
        elif name in NEED_IMATRIX and not has_imatrix:
            faults.append(f"quantization {name!r} needs an importance matrix; set export.imatrix_rows, or use iq4_xs")
    return faults


def tensor_type_faults(overrides: Mapping[str, str], *, has_imatrix: bool = False) -> list[str]:
    """A line for every override whose pattern or type cannot be used."""
    known = tensor_types()
    faults = []
    for pattern, name in overrides.items():
        place = f"export.tensor_types: {pattern!r}"
        try:
            re.compile(pattern)
        except re.error as error:
            faults.append(f"{place}: not a regular expression ({error}); write one such as 'ffn_down'")
        if name not in known:
            faults.append(f"{place}: unknown type {name!r}; {_nearest(name, list(known))}")
        elif name in TENSORS_NEED_IMATRIX and not has_imatrix:
            faults.append(f"{place}: type {name!r} needs an importance matrix; set export.imatrix_rows, or use iq4_xs")
    return faults


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
