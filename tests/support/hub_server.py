"""A Hugging Face Hub on loopback: what huggingface_hub calls to make a repository and commit files to it.

Repositories, preupload, LFS with one PUT for a file, commits, and the faults that a test programs. Everything that is
asked must carry the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.label_server import QuietServer, read_json

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
        self._http = QuietServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """For a command that is to find this Hub. Xet, another protocol for the same files, is off."""
        hub = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return os.environ | hub

    def wait_until_held(self, n_sent: int) -> None:
        """Until the held file is on its way and `n_sent` others have come."""
        with self.lock:
            assert self.lock.wait_for(lambda: self.is_holding and len(self.sent) == n_sent, timeout=60)

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        with self._http.serving():
            yield self


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _, _, kinds, user, name, *_ = f"{self.path}/".split("/")
            found = server.repositories.get(f"{user}/{name}")
            if found is None or f"{found.kind}s" != kinds:
                return self._fail(404, "Repository not found", "RepoNotFound")
            siblings = [{"rfilename": path} for path in found.files]
            return self._send(
                {"id": f"{user}/{name}", "private": found.is_private, "sha": "0" * 40, "siblings": siblings}
            )

        def do_POST(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {server.token}":
                self.rfile.read(int(self.headers["Content-Length"]))
                return self._fail(401, f"Invalid credentials: {self.headers.get('Authorization')}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts == ["api", "validate-yaml"]:
                return self._send({"errors": [], "warnings": []} if read_json(self) else {})
            if parts == ["api", "repos", "create"]:
                return self._create(read_json(self))
            if parts[-4:] == ["info", "lfs", "objects", "batch"]:
                return self._batch(read_json(self))
            repository = server.repositories[f"{parts[2]}/{parts[3]}"]
            if parts[4] == "preupload":
                return self._preupload(repository, read_json(self))
            assert parts[4] == "commit", self.path
            return self._commit(repository, f"{server.url}/{parts[2]}/{parts[3]}")

        def do_PUT(self) -> None:
            """The body of a large file; its address names its hash, and it is kept only when it is whole."""
            size, oid = int(self.headers["Content-Length"]), self.path.rpartition("/")[2]
            with server.lock:
                server.is_holding = server.is_holding or size == server.holds
                server.lock.notify_all()
                is_cut = server.n_cuts > 0
                server.n_cuts -= is_cut
            if size == server.holds:
                self.rfile.read(size + 1)  # until the client goes away
            if is_cut:
                self.rfile.read(size // 2)
            if is_cut or size == server.holds:
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            body = self.rfile.read(size)
            assert hashlib.sha256(body).hexdigest() == oid
            with server.lock:
                server.objects[oid] = body
                server.sent.append(size)
                server.lock.notify_all()
            return self._send({})

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in server.repositories:
                return self._fail(409, "You already created this repo")
            is_private = asked.get("visibility") == "private"
            server.repositories[name] = Repository(asked.get("type", "model"), is_private)
            return self._send({"url": f"{server.url}/{name}", "name": name})

        def _preupload(self, repository: Repository, asked: dict[str, Any]) -> None:
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
            self._send({"files": files})

        def _batch(self, asked: dict[str, Any]) -> None:
            """Where to put each object; one that is there has no actions."""
            objects = []
            for wanted in asked["objects"]:
                upload = {"upload": {"href": f"{server.url}/objects/{wanted['oid']}"}}
                objects.append(wanted | ({} if wanted["oid"] in server.objects else {"actions": upload}))
            self._send({"transfer": "basic", "objects": objects})

        def _commit(self, repository: Repository, url: str) -> None:
            lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
            if server.refusal:
                return self._fail(*server.refusal)
            for line in map(json.loads, lines):
                value = line["value"]
                if line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = server.objects[value["oid"]]
            repository.n_commits += 1
            return self._send({"commitUrl": f"{url}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})

        def _fail(self, status: int, message: str, code: str = "") -> None:
            self._send({"error": message}, status, {"X-Error-Message": message, "X-Error-Code": code})

        def _send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: pytest shows what matters."""

    return Handler


def _oid(path: str, content: bytes | None) -> str | None:
    if content is None:
        return None
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
