"""`.ci/fresh`: a command finds nothing of earlier runs but what pip has kept, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from observer.paths import PROJECT_ROOT

LOOK = """
import json, os, tempfile
home, temporary = os.path.expanduser("~"), tempfile.gettempdir()
seen = {place: sorted(os.listdir(place)) for place in (home, temporary, "/dev/shm", os.environ["PIP_CACHE_DIR"])}
print(json.dumps({"home": home, "temporary": temporary, "here": os.getcwd(), "seen": seen}))
locked = os.path.join(home, "locked")
os.mkdir(locked)
open(os.path.join(locked, "file"), "w").close()
os.chmod(locked, 0o555)
raise SystemExit(7)
"""


@pytest.fixture
def checkout() -> Iterator[Path]:
    """One in /tmp, where it could be covered as well."""
    folder = Path("/tmp", f"checkout-{os.getpid()}")
    shutil.copytree(PROJECT_ROOT / ".ci", folder / ".ci")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user with full folders."""
    home = tmp_path / "home"
    (home / ".cache" / "pip").mkdir(parents=True)
    (home / ".cache" / "pip" / "wheel").touch()
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text("[global]\ntimeout = 77\n")
    names = {"XDG_CACHE_HOME": home / ".cache", "XDG_CONFIG_HOME": home / ".config", "HOME": home, "TMPDIR": tmp_path}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return kept | {name: str(path) for name, path in names.items()} | {"PYTHON": sys.executable}


def fresh(checkout: Path, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([checkout / ".ci" / "fresh", *command], env=environment, capture_output=True, text=True)


def refuse_namespaces(environment: dict[str, str], tmp_path: Path) -> None:
    """As a container does: `unshare` is there, and not allowed."""
    refusing = tmp_path / "bin" / "unshare"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\nexit 1\n")
    refusing.chmod(0o755)
    environment["PATH"] = f"{refusing.parent}:{environment['PATH']}"


@pytest.mark.parametrize("has_namespace", [True, False])
def test_a_command_sees_nothing_but_its_checkout_and_what_pip_kept_and_leaves_nothing(
    checkout: Path, environment: dict[str, str], tmp_path: Path, has_namespace: bool
) -> None:
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    if not has_namespace:
        refuse_namespaces(environment, tmp_path)
    elif os.geteuid() or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs root and a mount namespace")
    done = fresh(checkout, environment, sys.executable, "-c", LOOK)
    assert done.returncode == 7, done.stderr
    found = json.loads(done.stdout)
    seen, cache = found["seen"], Path(environment["HOME"], ".cache", "pip")
    assert found["here"] == str(checkout) and seen[found["home"]] == []
    assert seen.pop(str(cache)) == ["wheel"]
    if has_namespace:
        stays = (checkout, cache, Path(sys.prefix))
        kept = {path.parts[2] for path in stays if path.is_relative_to("/tmp")}
        assert found["temporary"] == "/tmp" and set(seen["/tmp"]) == kept and seen["/dev/shm"] == []
        assert not done.stderr
    else:
        assert found["temporary"] not in ("/tmp", str(tmp_path)) and seen[found["temporary"]] == []
        assert done.stderr == "no mount namespace here: TMPDIR and HOME are new, /tmp and /dev/shm are not\n"
    assert not Path(found["home"]).parent.exists()


STOP_SLOWLY = """
import os, signal, sys, time
def stop(*_):
    time.sleep(1)
    print(os.path.isdir(os.path.expanduser("~")), os.path.isfile(".ci/fresh"), flush=True)
    sys.exit(9)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("has_namespace", [True, False])
def test_a_command_that_is_stopped_keeps_its_folders_until_it_has_ended(
    checkout: Path, environment: dict[str, str], tmp_path: Path, has_namespace: bool
) -> None:
    if not has_namespace:
        refuse_namespaces(environment, tmp_path)
    command = [checkout / ".ci" / "fresh", sys.executable, "-c", STOP_SLOWLY]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stdout and run.stdout.readline() == "ready\n"
    os.killpg(run.pid, signal.SIGTERM)
    assert run.communicate()[0] == "True True\n" and run.returncode == 9
    assert (checkout / ".ci" / "fresh").is_file()


def test_pip_is_configured_as_it_was(checkout: Path, environment: dict[str, str]) -> None:
    done = fresh(checkout, environment, sys.executable, "-m", "pip", "config", "list")
    assert "global.timeout='77'" in done.stdout.splitlines(), done.stderr
