"""A small shop on the web: POST /orders adds one, GET /orders counts them. Its port is 80."""

from __future__ import annotations

import http.server
import json
import sys
from pathlib import Path

ORDERS = Path("/tmp/shop-orders.txt")
"""A fixed name, as programs have them: two shops on one machine would get in each other's way."""


class Shop(http.server.BaseHTTPRequestHandler):
    """Answers in JSON."""

    def do_GET(self) -> None:
        """Say how many orders there are."""
        orders = ORDERS.read_text("utf-8").splitlines() if ORDERS.exists() else []
        self.answer(200 if self.path == "/orders" else 404, {"orders": len(orders)})

    def do_POST(self) -> None:
        """Take an order."""
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with ORDERS.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        self.answer(201, {"taken": text})

    def answer(self, status: int, body: dict[str, object]) -> None:
        """Send it."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Serve until it is ended; a line of output says that it can be asked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 80), Shop)
    sys.stdout.write("open\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
