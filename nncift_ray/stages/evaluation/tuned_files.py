"""The files of a fine-tuned model, from where the run is kept to where an engine loads them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from nncift_ray.errors import StorageError
from nncift_ray.models.model_files import ADAPTER_CONFIG
from nncift_ray.models.tuned_model import TunedModel
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import FILES_TABLE, Sink, StageOutput

CHUNK_BYTES = 1 << 24
QUANTIZATION_FACT = "quantization"


def write_tuned_files(folder: Path, quantization: str | None, sink: Sink) -> None:
    """Hand the files that a training wrote into a folder to the stage's output."""
    sink.facts[QUANTIZATION_FACT] = quantization
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as source:
                shutil.copyfileobj(
                    source, sink.open_file(path.relative_to(folder).as_posix()), CHUNK_BYTES
                )


@contextmanager
def tuned_files(tuning: StageOutput | None) -> Generator[TunedModel | None]:
    """Give the files of a tune stage's output a local folder; None for None.

    A run on a disk is read where it lies. From an object store the files are fetched into a
    temporary folder, which is gone at the end: engines have read all they need once they are made.

    Raises:
        StorageError: If a file cannot be read.
    """
    if tuning is None:
        yield None
        return
    names = sorted(part.name for part in tuning.manifest.table_parts(FILES_TABLE))
    facts = tuning.manifest.facts()
    is_adapter = f"{FILES_TABLE}/{ADAPTER_CONFIG}" in names
    quantization = facts.get(QUANTIZATION_FACT)
    if tuning.folder.is_local:
        yield TunedModel(Path(tuning.folder.path) / FILES_TABLE, is_adapter, quantization)
        return
    with tempfile.TemporaryDirectory(prefix="nncift-tuned-") as scratch:
        for name in names:
            _fetch(tuning.folder / name, Path(scratch) / name)
        yield TunedModel(Path(scratch) / FILES_TABLE, is_adapter, quantization)


def _fetch(source: Location, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.fs.open_input_stream(source.path) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, CHUNK_BYTES)
    except OSError as error:
        raise StorageError(f"{source}: cannot be fetched ({error})") from error
