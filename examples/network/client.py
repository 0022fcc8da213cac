"""A client that gets through a network that breaks: it tries again, and gives up in the end."""

from __future__ import annotations

import socket
import time


def fetch(address: tuple[str, int], *, patience: float, attempt: float = 0.3) -> bytes:
    """Return what the server sends.

    Args:
        address: of the server.
        patience: seconds to go on trying for.
        attempt: seconds that one attempt may take.

    Raises:
        TimeoutError: nothing came within that time.
    """
    end = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection(address, attempt) as connection:
                return connection.makefile("rb").read()
        except OSError as error:  # refused, unreachable, or nothing heard of it
            if time.monotonic() > end:
                raise TimeoutError(f"no answer within {patience:g} s") from error
            time.sleep(0.05)
