"""Recipe sections ``data`` and ``embedder``: the corpus, and the vectors it becomes."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from nncift_ray.config.sections import PoolConfig, Section

_SIGNED = re.compile(
    r"[?&](x-amz-signature|x-amz-credential|awsaccesskeyid|sig|signature|token)=", re.I
)


class DataConfig(Section):
    """What to choose from, and what to become good at.

    Attributes:
        candidates: Files, globs or folders to choose from.
        targets: What the model should be good at; the candidates themselves when empty.
        existing: Data that the model already has; a conditional gain looks for what they lack. They
            are not selected again, and are never labelled.
        layout: Layout of all files, or "auto" to find it per file.
        columns: Explicit mapping for other layouts, e.g. {prompt: q, response: a}.
        max_chars: A longer prompt or response makes a row an error.
        max_failed_fraction: Stop when a larger share of the records is unusable.
        group_by: Field of the original record that names a source or task in the report; the file
            name when null.
        subtask_by: Field of a target's original record that names its subtask; the objective top_k
            takes the best of the subtasks (LESS). All targets are one subtask when null.
    """

    candidates: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    layout: Literal[
        "auto", "alpaca", "prompt_completion", "question_answer", "sharegpt", "messages"
    ] = "auto"
    columns: dict[str, str] | None = None
    max_chars: int = Field(default=200_000, ge=1)
    max_failed_fraction: float = Field(default=0.5, ge=0, le=1)
    group_by: str | None = None
    subtask_by: str | None = None

    @field_validator("candidates", "targets", "existing")
    @classmethod
    def _unsigned(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(_SIGNED.search(path) for path in value):
            raise ValueError(
                "a signed address holds a secret that would be written to every row's source; "
                "give a plain address, and credentials by the environment"
            )
        return value

    @field_validator("candidates", "targets", "existing", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.columns is not None and self.layout != "auto":
            raise ValueError("give either layout or columns, not both: columns is itself a layout")
        if self.subtask_by is not None and not self.targets:
            raise ValueError("subtask_by names a field of targets, and there are none")
        if self.columns is not None and not {"prompt", "response"} <= set(self.columns):
            raise ValueError("columns needs the keys 'prompt' and 'response'")
        return self


class EmbedderConfig(Section):
    """The sentence embedder whose vectors the network reads.

    Attributes:
        model: "auto" (BAAI/bge-large-en-v1.5, or the packaged model when the hub cannot be
            reached), a hub id, a local folder, or "embedded:all-minilm-l6-v2".
        revision: Revision of a hub model.
        dtype: How vectors are stored.
        pool: Actors.
    """

    model: str = "auto"
    revision: str | None = None
    dtype: Literal["float32", "float16"] = "float32"
    pool: PoolConfig = PoolConfig()
