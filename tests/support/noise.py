"""A model that is damaged by as much as a test asks for."""

from __future__ import annotations

import shutil
from pathlib import Path

from observer.paths import NANO_BASE, PROJECT_ROOT


def with_noise(folder: Path, part: str, share: float) -> Path:
    """The nano base, its matrices with `part` in their name changed by normal noise of this share of their spread."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(PROJECT_ROOT / NANO_BASE, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name, values in tensors.items():
        if part in name and values.dim() == 2:
            noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
            tensors[name] = (values.float() + share * values.float().std() * noise).to(values.dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder
