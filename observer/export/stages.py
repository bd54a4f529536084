"""The export stages of a run: importance matrix, GGUF files, adapter GGUF, Modelfiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from observer.console.run import run_cli
from observer.export.export import ExportPlan, export, files_of
from observer.export.gguf.adapter import write_adapter_gguf
from observer.export.quantize.imatrix import calibration_of
from observer.export.quantize.quantize import end_with_parent
from observer.export.source import Source
from observer.ollama.modelfile import library_base, plan_modelfiles, write_all
from observer.paths import ADAPTER
from observer.runs.finished_run import Run, read_run
from observer.runs.manifest import Manifest


def export_stages(run: Run, base: Path, device: str, manifest: Manifest) -> list[Path]:
    """Make what a trained and merged run ships; return the Modelfiles, those of the shipped quantization first.

    The importance matrix is measured on `device`.
    """
    if "unsloth" in sys.modules:  # it has put its own code for GPUs into transformers, which we compare with
        _export_in_a_new_process(run, base, device)
        manifest.read()
        return list(plan_modelfiles(run.paths, run.config))
    paths, config, settings = run.paths, run.config, run.config.export
    types = tuple(dict.fromkeys(("f16", *settings.quantizations)))
    imatrix = paths.imatrix if settings.imatrix_rows else None
    files = files_of(types, settings.tensor_types, has_imatrix=imatrix is not None)
    source = Source(config.run.name, paths.merged, paths.adapter, base)
    calibration = calibration_of(run, device)
    export(ExportPlan(source, paths.gguf("").parent, files, imatrix, calibration, settings.tensor_types), manifest)

    if library_base(config.model.base):  # Ollama has the base: 10 to 20 MB are enough to ship
        out = paths.gguf(ADAPTER)

        def export_adapter() -> None:
            write_adapter_gguf(paths.adapter, base, out, name=config.run.name)

        manifest.run("gguf adapter", {"adapter": paths.adapter, "name": config.run.name}, [out], export_adapter)

    modelfiles = plan_modelfiles(paths, config)
    texts = {path.name: text for path, text in modelfiles.items()}
    manifest.run("modelfiles", texts, list(modelfiles), lambda: write_all(modelfiles))
    return list(modelfiles)


def _export_in_a_new_process(run: Run, base: Path, device: str) -> None:
    command = [sys.executable, "-m", "observer.export.stages", str(run.paths.root), str(base), device]
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)  # it has said why


def _main() -> None:
    end_with_parent()
    root, base, device = sys.argv[1:]
    run = read_run(Path(root))
    export_stages(run, Path(base), device, Manifest(run.paths.manifest))


if __name__ == "__main__":
    sys.exit(run_cli(_main))
