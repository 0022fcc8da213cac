"""A server that greets everyone who connects."""

from __future__ import annotations

import socket
import threading


class Server:
    """Sends a text to each connection and closes it; listens as soon as it is made."""

    def __init__(self, port: int, text: bytes = b"hello") -> None:
        self.text = text
        self.listening = socket.create_server(("", port))
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        """Greet, until the socket is closed."""
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(self.text)

    def close(self) -> None:
        """Stop."""
        self.listening.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self.thread.join()
        self.listening.close()
