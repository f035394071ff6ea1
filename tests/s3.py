"""An object store on this machine: moto behind the real S3 protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyarrow import fs as pafs

moto_server = pytest.importorskip("moto.server")


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, bucket: str) -> Iterator[str]:
    """Serve an empty bucket; yields the query that a URI needs to reach it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"?endpoint_override=http%3A%2F%2F{host}%3A{port}&region=us-east-1"
    fs, _ = pafs.FileSystem.from_uri(f"s3://{bucket}/x{query}&allow_bucket_creation=true")
    fs.create_dir(bucket)
    try:
        yield query
    finally:
        server.stop()
