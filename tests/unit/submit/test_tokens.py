"""The token is looked for where Ray looks, and its lack is said with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from nncift_ray.errors import JobError
from nncift_ray.submit import check_address, find_token, goes_unencrypted


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    (tmp_path / "named").write_text("of-path\n")
    return tmp_path


def test_the_variable_wins_over_the_named_file_and_that_over_home(home: Path) -> None:
    named = {"RAY_AUTH_TOKEN_PATH": str(home / "named")}
    assert find_token({"RAY_AUTH_TOKEN": "of-variable", **named}, home) == "of-variable"
    assert find_token(named, home) == "of-path"
    assert find_token({}, home) == "of-home"


def test_no_token_is_sent_where_it_is_switched_off_or_there_is_none(home: Path) -> None:
    assert find_token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}, home) is None
    assert find_token({}, home / "nowhere") is None


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RAY_AUTH_MODE": "token"}, "asks for a token, and there is none"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, "cannot be read"),
        ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "is empty"),
    ],
)
def test_a_lack_is_said_with_the_remedy(
    environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=words) as caught:
        find_token(environment, tmp_path)
    assert "ray get-auth-token" in str(caught.value)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", False),
        ("http://[::1]:8265", False),
        ("http://localhost:8265", False),
        ("https://ray.example.org", False),
        ("http://10.0.0.7:8265", True),
        ("http://head.cluster:8265", True),
    ],
)
def test_an_open_road_is_seen(address: str, expected: bool) -> None:
    assert goes_unencrypted(address) == expected


def test_addresses_of_other_servers_are_refused() -> None:
    assert check_address("127.0.0.1:8265/") == "http://127.0.0.1:8265"
    for address in ("ray://127.0.0.1:10001", "auto", "gcs://x"):
        with pytest.raises(JobError, match="no address of a job server"):
            check_address(address)
