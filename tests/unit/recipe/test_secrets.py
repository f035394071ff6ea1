"""Secrets: refused in recipes, masked in texts."""

from __future__ import annotations

from typing import Any

import pytest

from nncift_ray.errors import MASK, ConfigError, find_secret, redact
from nncift_ray.recipe.loading import make_config

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEJr//////////wEaDA",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOp",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    "MY_SERVICE_API_KEY": "sk-planted-0001",
    "DB_PASSWORD": "correct horse battery",
}
#: Names that hold no secret, or values too short to be one.
HARMLESS = {
    "RAY_AUTH_MODE": "token-mode",
    "RAY_AUTH_TOKEN_PATH": "/home/somebody/.ray/auth_token",
    "TOKENIZERS_PARALLELISM": "false-false",
    "MONKEY_BUSINESS": "bananas bananas",
    "SHORT_TOKEN": "abc",
}


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (PLANTED | HARMLESS).items():
        monkeypatch.setenv(name, value)


def recipe(**changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "run_dir": "runs/x",
        "data": {"candidates": ["a.jsonl"]},
        "teacher": {"kind": "delift_se"},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


@pytest.mark.parametrize("name", PLANTED)
def test_a_secret_of_the_environment_is_masked_wherever_it_stands(name: str) -> None:
    text = redact(f"GET failed: key={PLANTED[name]}, twice {PLANTED[name]}")
    assert PLANTED[name] not in text
    assert text.count(MASK) == 2


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_secret_stays(name: str) -> None:
    assert redact(f"value {HARMLESS[name]}") == f"value {HARMLESS[name]}"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("s3://AKIA:sEcReT@bucket/a", f"s3://{MASK}@bucket/a"),
        ("https://user:pass@host:8265/x", f"https://{MASK}@host:8265/x"),
        ("https://onlytoken@host/x", f"https://{MASK}@host/x"),
        ("https://h/x?a=1&X-Amz-Signature=abc123&b=2",
         f"https://h/x?a=1&X-Amz-Signature={MASK}&b=2"),
        ("https://h/x?sig=abc%2F123", f"https://h/x?sig={MASK}"),
        ("Authorization: Bearer abcdefgh12345", f"Authorization: Bearer {MASK}"),
        ("mail a@b.example, see https://host/path@v2", "mail a@b.example, see https://host/path@v2"),
    ],
)  # fmt: skip
def test_credentials_in_addresses_and_headers_are_masked(text: str, masked: str) -> None:
    assert redact(text) == masked


@pytest.mark.parametrize(
    "changes",
    [
        {"run_dir": "s3://AKIA:sEcReT77@bucket/run"},
        {"data__candidates": ["https://user:sEcReT77@host/a.jsonl"]},
        {"data__targets": ["https://host/a.jsonl?X-Amz-Signature=sEcReT77"],
         "selection__objective": "facility_location"},
        {"cluster__address": "ray://user:sEcReT77@head:10001"},
        {"embedder__model": "https://user:sEcReT77@hub/model"},
        {"evaluation__tests": {"held_out": ["s3://AKIA:sEcReT77@bucket/t.jsonl"]}},
        {"report__title": "of https://user:sEcReT77@host"},
    ],
)  # fmt: skip
def test_a_recipe_with_credentials_in_an_address_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="credentials|signed") as caught:
        make_config(recipe(**changes))
    assert "sEcReT77" not in str(caught.value)


@pytest.mark.parametrize("name", PLANTED)
def test_a_recipe_with_a_secret_of_the_environment_is_refused(name: str) -> None:
    tree = recipe(teacher__kind="mine:Teacher", teacher__options={"url": f"x {PLANTED[name]} y"})
    with pytest.raises(ConfigError, match="teacher.options.url: holds the value") as caught:
        make_config(tree)
    assert PLANTED[name] not in str(caught.value)


def test_a_secret_under_a_wrong_key_is_not_repeated_in_the_message() -> None:
    tree = recipe(selection__objective=PLANTED["HF_TOKEN"])
    with pytest.raises(ConfigError) as caught:
        make_config(tree)
    assert PLANTED["HF_TOKEN"] not in str(caught.value)
    assert MASK in str(caught.value)


def test_a_secret_as_a_key_is_found() -> None:
    assert find_secret({"a": {PLANTED["HF_TOKEN"]: 1}}) is not None


def test_a_plain_recipe_is_not_suspected() -> None:
    tree = recipe(run_dir="s3://bucket/run?region=eu-west-1&endpoint_override=localhost:9000")
    assert make_config(tree).run_dir.startswith("s3://bucket")
