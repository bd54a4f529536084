"""A stage is skipped only when neither its inputs nor its outputs changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from observer.errors import ObserverError
from observer.runs.manifest import Manifest, environment, fingerprint


class Stage:
    """A stage that copies `input.txt` to `output.txt` and counts how often it worked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        self.source, self.target = folder / "input.txt", folder / "output.txt"
        self.source.write_text("one")

    def run(self, **inputs: Any) -> bool:
        manifest = Manifest(self.folder / "manifest.json")  # read anew, as a second process would
        return manifest.run("copy", {"source": self.source, **inputs}, [self.target], self.work)

    def work(self) -> dict[str, Any]:
        self.runs += 1
        self.target.write_text(self.source.read_text())
        return {"runs": self.runs}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_stage_runs_once_on_the_same_inputs(stage: Stage) -> None:
    assert stage.run(rate=1)
    assert not stage.run(rate=1)
    assert stage.runs == 1


def test_a_changed_input_file_or_value_runs_the_stage_again(stage: Stage) -> None:
    stage.run(rate=1)
    stage.source.write_text("two")
    assert stage.run(rate=1)
    assert stage.run(rate=2)
    assert stage.target.read_text() == "two"
    assert stage.runs == 3


def test_a_changed_or_missing_output_runs_the_stage_again(stage: Stage) -> None:
    stage.run()
    stage.target.write_text("tampered")
    assert stage.run()
    assert stage.target.read_text() == "one"
    stage.target.unlink()
    assert stage.run()
    assert not stage.run()


def test_a_touched_but_equal_input_does_not_run_the_stage_again(stage: Stage) -> None:
    stage.run()
    stage.source.write_text("one")
    assert not stage.run()


def test_another_list_of_outputs_runs_the_stage_again(stage: Stage) -> None:
    stage.run()
    manifest = Manifest(stage.folder / "manifest.json")
    assert manifest.run("copy", {"source": stage.source}, [stage.target, stage.source], stage.work)


def test_a_stage_that_fails_is_not_recorded_and_the_earlier_ones_stay(stage: Stage) -> None:
    stage.run()
    manifest = Manifest(stage.folder / "manifest.json")

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        manifest.run("train", {}, [stage.folder / "adapter"], fail)
    assert Manifest(manifest.path).stages.keys() == {"copy"}
    with pytest.raises(AssertionError, match="did not write"):
        manifest.run("train", {}, [stage.folder / "adapter"], lambda: None)
    assert Manifest(manifest.path).stages.keys() == {"copy"}


def test_notes_survive_and_names_are_relative_so_that_a_run_can_be_moved(stage: Stage, tmp_path: Path) -> None:
    stage.run()
    manifest = Manifest(stage.folder / "manifest.json")
    assert manifest.notes("copy") == {"runs": 1}
    assert manifest.notes("nothing") == {}
    assert manifest.stages["copy"]["outputs"].keys() == {"output.txt"}
    assert str(tmp_path) not in manifest.path.read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", "{not json", '{"stages": 3}', '{"stages": {"copy": {}}}'])
def test_a_broken_manifest_is_told_with_its_mend(stage: Stage, text: str) -> None:
    (stage.folder / "manifest.json").write_text(text)
    with pytest.raises(ObserverError, match=r"manifest.json: not a manifest of ours; delete it to start the run anew"):
        stage.run()


def test_a_fingerprint_follows_content_not_place_or_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    assert fingerprint({"x": tmp_path / "a", "y": 1}) == fingerprint({"y": 1, "x": tmp_path / "b"})
    assert fingerprint({"x": 1}) != fingerprint({"x": 2})
    assert fingerprint({"x": 1}) != fingerprint({"y": 1})


def test_the_environment_traces_versions_without_importing_them(stage: Stage) -> None:
    stage.run()
    recorded = json.loads((stage.folder / "manifest.json").read_text())["environment"]
    assert recorded == environment()
    assert recorded["packages"]["transformers"]
    assert recorded["python"].startswith("3.")
