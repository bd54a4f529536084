"""A Hugging Face Hub on loopback: what huggingface_hub calls to make a repository and commit files to it.

Repositories, preupload, LFS with one PUT for a file, commits, and the faults that a test programs. Everything that is
asked must carry the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tests.support.loopback import Asked, Loopback, Sent

LARGE = (".gguf", ".safetensors", ".parquet")


@dataclass
class Repository:
    kind: str
    is_private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    n_commits: int = 0


@dataclass
class HubServer:
    """`repositories` by name, `objects` of the large file storage by SHA-256, `sent` the sizes of what came whole.

    The next `n_cuts` uploads are cut half-way. Those of `holds` bytes never end. `refusal` answers every commit with
    its status and text.
    """

    token: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    n_cuts: int = 0
    holds: int | None = None
    refusal: tuple[int, str] | None = None
    lock: threading.Condition = field(default_factory=threading.Condition)
    is_holding: bool = False

    def __post_init__(self) -> None:
        self._http = Loopback(self._send)
        self.url = self._http.url

    @property
    def environment(self) -> dict[str, str]:
        """For a command that is to find this Hub. Xet, another protocol for the same files, is off."""
        hub = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return os.environ | hub

    def wait_until_held(self, n_sent: int) -> None:
        """Until the held file is on its way and `n_sent` others have come."""
        with self.lock:
            assert self.lock.wait_for(lambda: self.is_holding and len(self.sent) == n_sent, timeout=600)

    def running(self) -> AbstractContextManager[HubServer]:
        return self._http.serving(self)

    def _send(self, asked: Asked) -> Sent | None:
        if asked.method == "GET":
            return self._get(asked.path)
        if asked.method == "PUT":
            return self._put(asked)
        if asked.headers.get("Authorization") != f"Bearer {self.token}":
            asked.read()
            return _fail(401, f"Invalid credentials: {asked.headers.get('Authorization')}")
        parts = asked.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            return Sent({"errors": [], "warnings": []} if asked.json() else {})
        if parts == ["api", "repos", "create"]:
            return self._create(asked.json())
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return self._batch(asked.json())
        repository = self.repositories[f"{parts[2]}/{parts[3]}"]
        if parts[4] == "preupload":
            return _preupload(repository, asked.json())
        assert parts[4] == "commit", asked.path
        return self._commit(repository, asked.read().splitlines(), f"{self.url}/{parts[2]}/{parts[3]}")

    def _get(self, path: str) -> Sent:
        _, _, kinds, user, name, *_ = f"{path}/".split("/")
        found = self.repositories.get(f"{user}/{name}")
        if found is None or f"{found.kind}s" != kinds:
            return _fail(404, "Repository not found", "RepoNotFound")
        siblings = [{"rfilename": path} for path in found.files]
        return Sent({"id": f"{user}/{name}", "private": found.is_private, "sha": "0" * 40, "siblings": siblings})

    def _put(self, asked: Asked) -> Sent | None:
        """The body of a large file; its address names its hash, and it is kept only when it is whole."""
        size, oid = asked.size, asked.path.rpartition("/")[2]
        with self.lock:
            self.is_holding = self.is_holding or size == self.holds
            self.lock.notify_all()
            is_cut = self.n_cuts > 0
            self.n_cuts -= is_cut
        if size == self.holds:
            asked.read(size + 1)  # until the client goes away
            return None
        body = asked.read(size // 2 if is_cut else size)
        if is_cut:
            return None
        assert hashlib.sha256(body).hexdigest() == oid
        with self.lock:
            self.objects[oid] = body
            self.sent.append(size)
            self.lock.notify_all()
        return Sent({})

    def _create(self, asked: dict[str, Any]) -> Sent:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.repositories:
            return _fail(409, "You already created this repo")
        is_private = asked.get("visibility") == "private"
        self.repositories[name] = Repository(asked.get("type", "model"), is_private)
        return Sent({"url": f"{self.url}/{name}", "name": name})

    def _batch(self, asked: dict[str, Any]) -> Sent:
        """Where to put each object; one that is there has no actions."""
        objects = []
        for wanted in asked["objects"]:
            upload = {"upload": {"href": f"{self.url}/objects/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.objects else {"actions": upload}))
        return Sent({"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, lines: list[bytes], url: str) -> Sent:
        if self.refusal:
            return _fail(*self.refusal)
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.objects[value["oid"]]
        repository.n_commits += 1
        return Sent({"commitUrl": f"{url}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})


def _preupload(repository: Repository, asked: dict[str, Any]) -> Sent:
    """As the Hub does, it tells the git blob of what is there, by which an equal file is left out."""
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
            "oid": _oid(file["path"], repository.files.get(file["path"])),
        }
        for file in asked["files"]
    ]
    return Sent({"files": files})


def _fail(status: int, message: str, code: str = "") -> Sent:
    return Sent({"error": message}, status, {"X-Error-Message": message, "X-Error-Code": code})


def _oid(path: str, content: bytes | None) -> str | None:
    if content is None:
        return None
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
