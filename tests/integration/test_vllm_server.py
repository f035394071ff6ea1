from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.engines.vllm import ServerEngine, vllm_available
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.teachers.base import LabelRequest, Measurement
from nncift_ray.teachers.delift import DeliftTeacher
from tests.scoring_requests import HELPED, HELPERS, delift_requests, stack_log_probs
from tests.tiny_models import make_tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed"),
]

NATS_TOLERANCE = 1e-3
START_SECONDS = 240.0
#: What `vllm serve` starts; that command itself looks for a package of the name vllm.
SERVER = "vllm.entrypoints.openai.api_server"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def url(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = _free_port()
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny-llama"]
    flags += ["--enforce-eager", "--dtype", "float32", "--block-size", "32"]
    flags += ["--kv-cache-memory-bytes", str(64 << 20), "--api-key", "the-token"]
    log = tmp_path_factory.mktemp("log") / "serve.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", SERVER, "--model", str(tiny), *flags],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1"},
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await(health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(health, timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"vllm serve did not start: {log.read_text()[-3000:]}")


@pytest.fixture
def engine(url: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerEngine]:
    monkeypatch.setenv("NNCIFT_API_TOKEN", "the-token")
    server = {"url": url, "model": "tiny-llama"}
    options = EngineConfig.model_validate({"model": str(tiny), "engine": server})
    engine = ServerEngine(tiny, options)
    yield engine
    engine.close()


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo"])
def test_vllm_serve_gives_the_utilities_of_the_engine_here(
    engine: ServerEngine, tiny: Path, way: str
) -> None:
    assert engine._way == "prompt_logprobs"
    engine._way = way
    oracle = TransformersEngine(tiny, device="cpu")
    assert engine.max_length == oracle.max_length
    requests = delift_requests(engine)
    assert requests == delift_requests(oracle)
    found = stack_log_probs(engine.score(requests))
    expected = stack_log_probs(oracle.score(requests))
    np.testing.assert_allclose(found, expected, rtol=0, atol=NATS_TOLERANCE)
    asked = [LabelRequest(i, j) for j in HELPERS for i in HELPED]
    measured = DeliftTeacher(engine).measure(asked)
    assert all(isinstance(answer, Measurement) for answer in measured)
