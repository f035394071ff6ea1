"""An OpenAI-compatible server of no weight: the likelihood of a token is a hash of what is before.

A thread of the test answers on a free port of this machine.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

WORST_NATS = 6.0


def log_probs(ids: Sequence[int]) -> list[float | None]:
    """Return what the server says of each token of a prompt; nothing of the first."""
    state, found = 0, [None]
    for before, token in zip(ids, ids[1:], strict=False):
        state = zlib.crc32(f"{before},{token}".encode(), state)
        found.append(-WORST_NATS * state / 2**32)
    return found


@dataclass
class FakeServer:
    """What it knows, what it does wrong, and what it was asked."""

    ways: tuple[str, ...] = ("prompt_logprobs", "echo")
    token: str = ""  # that it wants
    faults: list[tuple[int, str]] = field(default_factory=list)  # answers before good ones
    shift: int = 0  # added to the tokens that it tells of: another tokenizer's
    refuses: int | None = None  # a token that makes it refuse a prompt
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: Lock = field(default_factory=Lock)

    def models(self) -> dict[str, Any]:
        """Return the models it has."""
        return {"data": [{"id": "tiny", "max_model_len": 500}, {"id": "other"}]}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and answer."""
        self.asked.append(body)
        if self.faults:
            return self.faults.pop(0)
        ids = body["prompt"]
        if self.refuses in ids:
            return 400, {"error": {"message": "this prompt is refused"}}
        choice: dict[str, Any] = {"text": "x"}
        told = log_probs(ids)
        if "prompt_logprobs" in body and "prompt_logprobs" in self.ways:
            choice["prompt_logprobs"] = [
                None if value is None else {str(token + self.shift): {"logprob": value, "rank": 1}}
                for token, value in zip(ids, told, strict=True)
            ]
        if body.get("echo") and "echo" in self.ways:
            choice["logprobs"] = {"token_logprobs": [*told, math.log(0.5)]}
        return 200, {"choices": [choice]}


@contextmanager
def serving(server: FakeServer) -> Generator[FakeServer]:
    """Answer until the body ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self._answer(200, server.models())

        def do_POST(self) -> None:  # noqa: N802
            with server.lock:
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.headers.append(self.headers["authorization"])
            if server.token and self.headers["authorization"] != f"Bearer {server.token}":
                self._answer(401, {"error": "no"})
            else:
                self._answer(*server.complete(body))
            with server.lock:
                server.at_once -= 1

        def _answer(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
