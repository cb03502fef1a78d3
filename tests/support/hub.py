"""A small server that speaks what huggingface_hub asks of the hub, over data sets in memory."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

Files = Mapping[str, bytes]


@dataclass
class FakeHub:
    """Data sets by name, each with its files by revision; and what was asked for."""

    address: str
    sets: dict[str, dict[str, Files]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def commit(self, name: str, revision: str) -> tuple[str, Files] | None:
        """The commit of a revision, or of a commit itself, and its files."""
        for known, files in self.sets[name].items():
            content = [f"{path} {hashlib.sha1(data).hexdigest()}" for path, data in sorted(files.items())]
            sha = hashlib.sha1("\n".join([known, *content]).encode()).hexdigest()
            if revision in (known, sha):
                return sha, files
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        """Answers."""
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[1:3])
        rest = parts[4:] if api else parts[3:]
        if name not in self.hub.sets:
            return self._refuse(404, "RepoNotFound")
        revision = "/".join(rest[1:]) if api else rest[1]
        found = self.hub.commit(name, revision or "main")
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        sha, files = found
        if api and rest[:1] == ["tree"]:
            return self._tree(files)
        if api:
            return self._answer(json.dumps({"id": name, "sha": sha, "private": False, "tags": []}).encode(), sha)
        if name in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        data = files.get("/".join(rest[2:]))
        return self._refuse(404, "EntryNotFound") if data is None else self._answer(data, sha)

    do_HEAD = do_GET

    def _tree(self, files: Files) -> None:
        listed = [
            {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
            for path, data in files.items()
        ]
        self._answer(json.dumps(listed).encode(), "")

    def _answer(self, body: bytes, sha: str) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self._send(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self._send(b"")

    def _send(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub on a port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    _Handler.hub = hub
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
