"""Every record of a corpus file as one stream, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator

from nncift_ray.errors import DataError
from nncift_ray.storage.arrow_records import read_ipc_records, read_parquet_records
from nncift_ray.storage.byte_streams import BrokenStreamError, detect_compression, read_chunks
from nncift_ray.storage.corpora import SourceFile
from nncift_ray.storage.csv_records import read_csv_records
from nncift_ray.storage.json_records import read_json_records
from nncift_ray.storage.rows import RawRecord, ReadLimits, bad_record


def read_raw_records(source: SourceFile, limits: ReadLimits | None = None) -> Iterator[RawRecord]:
    """Yield the records of a file, good and bad, in constant memory.

    Raises:
        DataError: If the file cannot be opened.
    """
    limits = limits or ReadLimits()
    try:
        if source.kind == "parquet":
            yield from read_parquet_records(source.fs, source.path, limits)
        elif source.kind == "arrow":
            compression = detect_compression(source.fs, source.path)
            yield from read_ipc_records(source.fs, source.path, limits, compression)
        else:
            yield from _read_text(source, limits)
    except BrokenStreamError as error:
        yield bad_record(1, error.reason, error.message)
    except FileNotFoundError as error:
        raise DataError(f"{source.uri}: the file is gone ({error})") from error


def _read_text(source: SourceFile, limits: ReadLimits) -> Iterator[RawRecord]:
    chunks = read_chunks(source.fs, source.path)
    if source.kind in ("csv", "tsv"):
        delimiter = "\t" if source.kind == "tsv" else ","
        return read_csv_records(chunks, limits, delimiter)
    return read_json_records(chunks, limits, prefer_lines=source.kind == "jsonl")
