"""Both UIs listen on loopback; another address is warned of before anything listens there."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuitseer_assets.errors import SettingsError
from resources.home import Home
from resources.servers import is_loopback, serve
from tests.conftest import small_settings, write_settings


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.2", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("gpu-node", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.fixture
def taken() -> Iterator[int]:
    """A loopback port on which somebody else listens: nothing can listen on it elsewhere either."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(("host", "is_warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_another_host_than_loopback_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, taken: int, host: str, is_warned: bool
) -> None:
    with pytest.raises(SettingsError, match=f"--dagster-port must be a free port of {host}"):
        serve(Home.prepared(tmp_path / "home"), host=host, dagster_port=taken)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == is_warned
    if is_warned:
        assert said[0].startswith("--host 0.0.0.0: whoever reaches ports")
        assert "can run code on this machine" in said[0]


def test_the_warning_is_seen_at_the_terminal(tmp_path: Path, taken: int) -> None:
    write_settings(tmp_path, small_settings())
    done = subprocess.run(
        [
            *[str(Path(sys.executable).with_name("circuitseer")), "dev", "--host", "0.0.0.0"],
            *["--dagster-port", str(taken)],
        ],
        env={**os.environ, "CIRCUITSEER_HOME": str(tmp_path), "COLUMNS": "500"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "can run code on this machine" in done.stderr
    assert "must be a free port of 0.0.0.0" in done.stderr
