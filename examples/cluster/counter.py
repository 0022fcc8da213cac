"""A small replicated counter: increments anywhere, everywhere the same in the end.

Every node keeps how often each node has counted, sends the whole table to its peers in a
datagram now and then, and takes the larger number of what it hears (a G-Counter). So a
partition stops nobody from counting, and what was counted comes together when it heals.
An increment that has to be safe waits until a majority of all nodes has confirmed it.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

PORT = 7777
EVERY = 0.02
"""Seconds between two messages to each peer."""


class Node:
    """One node; `address` is its name on the network, and so are those of its peers."""

    def __init__(self, name: str, peers: list[str]) -> None:
        self.name = name
        self.peers = peers
        self.counts = {name: 0}
        self.confirmed = dict.fromkeys(peers, 0)  # how much of our count each peer has
        self.changed = threading.Condition()
        self.stopped = threading.Event()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", PORT))
        self.socket.settimeout(0.1)
        self.threads = [threading.Thread(target=work) for work in (self.hear, self.tell)]
        for thread in self.threads:
            thread.start()

    @property
    def value(self) -> int:
        """What this node knows of."""
        with self.changed:
            return sum(self.counts.values())

    def increment(self, *, safely_within: float = 0) -> bool:
        """Count; with a number of seconds, tell whether a majority has it by then."""
        with self.changed:
            self.counts[self.name] += 1
            mine = self.counts[self.name]
            majority = (len(self.peers) + 1) // 2 + 1
            return not safely_within or self.changed.wait_for(
                lambda: 1 + sum(has >= mine for has in self.confirmed.values()) >= majority,
                safely_within,
            )

    def tell(self) -> None:
        """Send all that is known to each peer, again and again."""
        while not self.stopped.wait(EVERY):
            with self.changed:
                message = json.dumps({"from": self.name, "counts": self.counts}).encode()
            for peer in self.peers:
                try:
                    self.socket.sendto(message, (peer, PORT))
                except OSError:
                    continue  # not reachable now; the next message says the same

    def hear(self) -> None:
        """Take in what peers say."""
        while not self.stopped.is_set():
            try:
                data = self.socket.recv(1 << 16)
            except OSError:
                continue
            message = json.loads(data)
            with self.changed:
                for name, count in message["counts"].items():
                    self.counts[name] = max(self.counts.get(name, 0), count)
                self.confirmed[message["from"]] = message["counts"].get(self.name, 0)
                self.changed.notify_all()

    def close(self) -> None:
        """Stop."""
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        self.socket.close()


def main() -> None:
    """Run a node: "add" on its input counts, and each new value is a line of output."""
    node = Node(sys.argv[1], sys.argv[2:])
    threading.Thread(target=show, args=(node,), daemon=True).start()
    for line in sys.stdin:
        if line.strip() == "add":
            node.increment()
    node.close()


def show(node: Node) -> None:
    """Print the value whenever it has changed."""
    last = -1
    while True:
        if node.value != last:
            last = node.value
            print(last, flush=True)  # noqa: T201 -- it is what the program says
        time.sleep(EVERY)


if __name__ == "__main__":
    main()
