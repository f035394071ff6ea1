"""What an instruction example is, how it is named and how it is written for the embedder."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

ID_HEX_LENGTH = 32
ANSWER_SEPARATOR = "\n##Answer: "


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction example: what is asked and the answer it teaches."""

    example_id: str
    prompt: str
    response: str


def normalise_text(text: str) -> str:
    """Return the text in NFC with one kind of newline and no outer white space.

    Inner white space stays: it carries meaning in code and tables.
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def make_example_id(prompt: str, response: str) -> str:
    """Name an example by its normalised content: the first 128 bits of a SHA-256, in hex.

    Two records with the same normalised prompt and response have the same id, on any machine.
    """
    digest = hashlib.sha256()
    for part in (normalise_text(prompt), normalise_text(response)):
        data = part.encode("utf-8", errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:ID_HEX_LENGTH]


def embedding_text(prompt: str, response: str) -> str:
    """Write an example as the paper embeds it (NN-CIFT, arXiv 2502.09969, section 3)."""
    return f"{prompt}{ANSWER_SEPARATOR}{response}"
