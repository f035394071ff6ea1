"""An object store on this machine: moto behind the real S3 protocol."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyarrow import fs as pafs

moto_server = pytest.importorskip("moto.server")


class Flaky:
    """A store (a WSGI application) that turns a seeded share of all requests away, as S3 does."""

    def __init__(self, app: Callable[..., Iterable[bytes]], share: float, seed: int = 0) -> None:
        self._app, self._share, self._draw = app, share, random.Random(seed)
        self.num_requests = 0
        self.num_refused = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.num_requests += 1
        if self._draw.random() >= self._share:
            return self._app(environ, start_response)
        self.num_refused += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>later</Message></Error>"
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response("503 Slow Down", headers)
        return [body]


@contextmanager
def s3_server(
    monkeypatch: pytest.MonkeyPatch, bucket: str, flaky: list[Flaky] | None = None, share: float = 0
) -> Iterator[str]:
    """Serve an empty bucket; yields the query that a URI needs to reach it.

    With a ``share`` of requests to turn away, what does so is put into ``flaky`` once the bucket is
    there.
    """
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"?endpoint_override=http%3A%2F%2F{host}%3A{port}&region=us-east-1"
    fs, _ = pafs.FileSystem.from_uri(f"s3://{bucket}/x{query}&allow_bucket_creation=true")
    fs.create_dir(bucket)
    if flaky is not None:
        flaky.append(Flaky(server._server.app, share))
        server._server.app = flaky[0]
    try:
        yield query
    finally:
        server.stop()
