"""A small server with the calls of the Hugging Face hub that reading and pushing make."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "x" * 30


@dataclass
class FakeHub:
    """Data sets by name, each its files by path; what was asked, and with which token."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def serve(hub: FakeHub) -> Generator[FakeHub]:
    """Serve on a free port while the block runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        """Answer as to GET, without the body."""
        self._get()

    def do_GET(self) -> None:
        """Answer what is there: a data set, its tree, a file."""
        self._get()

    def _get(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[:1] == ["datasets"] and path[3:4] == ["resolve"]:
            self._send_file("/".join(path[1:3]), "/".join(path[5:]))
        elif path[:2] == ["api", "datasets"] and self._may_read("/".join(path[2:4])):
            self._send_json(self._describe("/".join(path[2:4]), path[4:]))
        else:
            self._refuse()

    def _may_read(self, repo: str) -> bool:
        is_private = repo.endswith("private")
        return repo in self.hub.repos and (
            not is_private or self.headers.get("authorization") == f"Bearer {TOKEN}"
        )

    def _describe(self, repo: str, what: list[str]) -> Any:
        files = self.hub.repos[repo]
        if what[:1] == ["tree"]:
            below = "/".join(what[2:])
            return [_entry(name, data) for name, data in files.items() if name.startswith(below)]
        siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        return {
            "_id": "1", "id": repo, "sha": COMMIT, "siblings": siblings, "private": False,
            "tags": [], "downloads": 0, "likes": 0,
        }  # fmt: skip

    def _send_file(self, repo: str, name: str) -> None:
        data = self.hub.repos.get(repo, {}).get(name)
        if data is None:
            self._refuse("EntryNotFound")
            return
        first, last = 0, len(data) - 1
        wanted = self.headers.get("range")
        if wanted:
            low, high = wanted.removeprefix("bytes=").split("-")
            first, last = int(low), min(int(high or last), last)
        headers = {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}  # noqa: S324
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(data[first : last + 1], 206 if wanted else 200, headers)

    def do_POST(self) -> None:
        """Take what is created or committed."""
        self.hub.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0].strip("/").split("/")
        if self.headers.get("authorization") != f"Bearer {TOKEN}" and path[-2] != "paths-info":
            self._refuse("RepoNotFound", 401)
        elif path == ["api", "repos", "create"]:
            asked = json.loads(body)
            self.hub.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.repos.setdefault(name, {})
            self._send_json({"url": f"{self.hub.endpoint}/datasets/{name}", "name": name})
        elif path[-2] == "paths-info":
            files = self.hub.repos["/".join(path[2:4])]
            wanted = _paths(body)
            self._send_json([_entry(name, files[name]) for name in wanted if name in files])
        elif path[-2] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in files]  # fmt: skip
            self._send_json({"files": modes})
        elif path[-2] == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    data = base64.b64decode(line["value"]["content"])
                    self.hub.repos["/".join(path[2:4])][line["value"]["path"]] = data
            self._send_json({"commitUrl": f"{self.hub.endpoint}/c/{COMMIT}", "commitOid": COMMIT})
        else:
            self._send_json({"errors": [], "warnings": []})

    def _refuse(self, code: str = "RepoNotFound", status: int = 404) -> None:
        self._send(b"", status, {"X-Error-Code": code, "X-Error-Message": code})

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": sha1(data).hexdigest(), "size": len(data), "path": name}  # noqa: S324


def _paths(body: bytes) -> list[str]:
    from urllib.parse import parse_qs

    if body[:1] in (b"{", b"["):
        value = json.loads(body)
        return list(value["paths"] if isinstance(value, dict) else value)
    return parse_qs(body.decode())["paths"]
