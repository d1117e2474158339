"""The tests' own rules: nothing leaves the machine, nothing of the developer's environment comes in."""

from __future__ import annotations

import os
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import CLOSED_DOOR, OutsideConnectionError


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80), ("example.org", 80)])
def test_case_91_no_connection_leaves_the_machine(address: tuple[str, int]) -> None:
    with pytest.raises(OutsideConnectionError, match=address[0]):
        socket.create_connection(address)


def test_case_91_not_even_through_a_library() -> None:
    with pytest.raises(OutsideConnectionError):
        urllib.request.urlopen("http://example.org/")


def test_case_91_no_datagram_leaves_the_machine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, pytest.raises(OutsideConnectionError):
        sender.sendto(b"x", ("192.0.2.1", 53))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_open(host: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection((host, server.getsockname()[1])),
    ):
        pass


def test_a_hub_that_nobody_named_is_a_closed_door() -> None:
    assert os.environ["HF_ENDPOINT"] == CLOSED_DOOR
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 9))


def test_the_environment_is_clean(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "HF_TOKEN" not in os.environ
    assert not [name for name in os.environ if name.startswith("LORADEX_")]
    assert Path(os.environ["HF_HOME"]).is_relative_to(tmp_path_factory.getbasetemp())


def test_a_subprocess_inherits_it() -> None:
    result = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert f"HF_ENDPOINT={CLOSED_DOOR}" in result.splitlines()
