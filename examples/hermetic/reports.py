"""A small report generator: what it reads and writes is what a hermetic run is about."""

from __future__ import annotations

import datetime as dt
import os
import socket
from pathlib import Path


def report(numbers: list[int], out: Path) -> Path:
    """Write a report, and remember it in the home directory."""
    lines = [f"sum {sum(numbers)}", f"zone {dt.datetime.now().astimezone().tzname()}"]
    out.write_text("\n".join(lines) + "\n", "utf-8")
    state = Path("~/.report-generator").expanduser()
    state.write_text(str(out), "utf-8")
    return out


def latest_price(server: str = "prices.example.com") -> str:
    """Ask for a price on the network."""
    with socket.create_connection((server, 80), 5) as connection:
        return connection.recv(100).decode()


def token() -> str | None:
    """Return the password of the user who runs this."""
    return os.environ.get("PRICES_TOKEN")
