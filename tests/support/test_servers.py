"""The loopback servers of the tests themselves."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.observing_server import ObservingServer


def test_a_client_that_goes_away_in_the_middle_of_a_request_leaves_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    server = ObservingServer()
    with server.running():
        host, port = server.host.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"POST /api/chat HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""  # the server has closed: its handler is over
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
