"""The export stages of a run: f16 GGUF, importance matrix, quantizations, adapter GGUF, Modelfiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer.config import Config
from observer.export.gguf.adapter import write_adapter_gguf
from observer.export.gguf.verify import verify_gguf
from observer.export.gguf.write import write_gguf
from observer.export.quantize.imatrix import ensure_imatrix, sample_rows
from observer.export.quantize.quantize import quantize
from observer.ollama.modelfile import library_base, plan_modelfiles, write_all
from observer.paths import ADAPTER
from observer.prompts import CUES, OLLAMA_TEMPLATE, SYSTEM_PROMPT
from observer.runs.stages import Stages
from observer.weights.gguf_types import wants_imatrix

if TYPE_CHECKING:
    from observer.training.device import Runtime
    from observer.training.prepare import Prepared


def export_stages(stages: Stages, prepared: Prepared, config: Config, runtime: Runtime) -> list[Path]:
    """Run every stage through `stages`; return the Modelfiles, those of the shipped quantization first."""
    paths, full = config.paths, config.paths.gguf("f16")
    quantized = [name for name in config.export.quantizations if name != "f16"]
    overrides = config.export.tensor_types

    def export_full() -> None:
        verify_gguf(write_gguf(paths.merged, full, "f16", name=config.run.name), expected_file_type="f16")

    stages.run("gguf f16", {"merged": paths.merged, "name": config.run.name}, [full], export_full)

    imatrix = None
    if config.export.imatrix_rows and (overrides or any(map(wants_imatrix, quantized))):
        imatrix = paths.imatrix
        rows = [row.input_ids for row in prepared.splits.train]
        sample = sample_rows(rows, config.export.imatrix_rows, config.run.seed)
        inputs = {"merged": paths.merged, "rows": [list(row) for row in sample]}
        datasets = [str(config.data.train)]
        stages.run("imatrix", inputs, [imatrix], lambda: {
            "computed": ensure_imatrix(paths.imatrix, paths.merged, sample, device=runtime.device, datasets=datasets)
        })  # fmt: skip

    def export(name: str, matrix: Path | None) -> dict[str, Any]:
        report = quantize(full, paths.gguf(name), name, imatrix=matrix, overrides=overrides)
        verify_gguf(paths.gguf(name), expected_file_type=name)
        return {"size_bytes": report.size_bytes, "fallbacks": report.fallbacks}

    for name in quantized:
        matrix = imatrix if overrides or wants_imatrix(name) else None
        inputs = {"f16": full, "quantization": name, "overrides": overrides} | ({"imatrix": matrix} if matrix else {})
        stages.run(f"gguf {name}", inputs, [paths.gguf(name)], lambda n=name, m=matrix: export(n, m))

    if library_base(config.model.base):  # Ollama has the base: 10 to 20 MB are enough to ship
        out = paths.gguf(ADAPTER)
        inputs = {"adapter": paths.adapter, "name": config.run.name}

        def export_adapter() -> None:
            write_adapter_gguf(paths.adapter, prepared.base, out, name=config.run.name)

        stages.run("gguf adapter", inputs, [out], export_adapter)

    files = plan_modelfiles(paths, config)
    inputs = {"export": config.export.model_dump(), "prompts": [SYSTEM_PROMPT, CUES], "template": OLLAMA_TEMPLATE}
    stages.run("modelfiles", inputs, list(files), lambda: write_all(files))
    return list(files)
