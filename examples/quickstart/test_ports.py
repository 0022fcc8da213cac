"""Two tests serve on the same port, one below 1024: each has a loopback of its own.

They need no root, and with ``--ns-jobs 2`` they run at the same time.
"""

import socket

import pytest

pytestmark = pytest.mark.isolated


def serve_and_ask(answer):
    with (
        socket.create_server(("127.0.0.1", 80)) as server,
        socket.create_connection(("127.0.0.1", 80)) as client,
    ):
        connection, _ = server.accept()
        with connection:
            connection.sendall(answer)
        return client.recv(100)


def test_first_server():
    assert serve_and_ask(b"first") == b"first"


def test_second_server():
    assert serve_and_ask(b"second") == b"second"
