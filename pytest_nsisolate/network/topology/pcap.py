"""Capture packets into files: a ring of the kernel per tap, and one thread that empties them.

The files have pcap's classic format with nanoseconds, Ethernet, and packets whole. What
does not fit into the ring while the thread has no turn is lost, and counted.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

from pytest_nsisolate.core.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

# linux/if_packet.h
_SOL_PACKET = 263
_RX_RING, _STATISTICS, _VERSION = 5, 6, 10
_V3 = 2
_ALL = 0x0003
_OUTGOING = 4
_KERNELS, _OURS = 0, 1
#: Of a block: version, offset of private data, status, packets, offset of the first.
_BLOCK = struct.Struct("=IIIII")
_STATUS = struct.Struct("=I")
_STATUS_AT = 8
#: Of a packet: offset of the next, s, ns, captured, length, status, offset of its data.
_PACKET = struct.Struct("=IIIIIIH")
#: sockaddr_ll, behind the header of a packet: interface, and whether it goes out.
_FROM = struct.Struct("=4xiHB")
_FROM_AT = 48

_FILE = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 1)
_RECORD = struct.Struct("=IIII")
_LOOPBACK = 1

#: Larger than any packet that a veth passes on.
_BLOCK_SIZE = 128 << 10
_BLOCKS = 32
_MIN_BLOCKS = 4
#: Blocks of all taps that are made together.
_ALL_BLOCKS = 128
#: After how many ms the kernel hands over a block that is not full.
_RETIRE_MS = 10


def blocks_of(taps: int) -> int:
    """Return how many blocks each of so many taps gets."""
    return max(_MIN_BLOCKS, min(_BLOCKS, _ALL_BLOCKS // taps))


class Tap:
    """A packet socket in the network namespace that this thread is in, and its file."""

    def __init__(self, path: str, *, interface: int = 0, blocks: int = _BLOCKS) -> None:
        """Count packets from here on.

        Args:
            interface: index of the device, 0 for all.

        Raises:
            StageError: CAP_NET_RAW is missing, or memory.
            OSError: the file can't be made.
        """
        self.path = path
        self.packets = 0
        self.dropped = 0
        self._blocks = blocks
        self._next = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            # With a protocol it is bound to every interface at once; what comes before there
            # is a ring is thrown away when there is one.
            protocol = 0 if interface else socket.htons(_ALL)
            self.socket = socket.socket(socket.AF_PACKET, kind, protocol)
            try:
                self.socket.setsockopt(_SOL_PACKET, _VERSION, _V3)
                ring = (_BLOCK_SIZE, blocks, _BLOCK_SIZE, blocks, _RETIRE_MS, 0, 0)
                self.socket.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=7I", *ring))
                self._ring = mmap.mmap(self.socket.fileno(), _BLOCK_SIZE * blocks)
                if interface:
                    self.socket.bind((socket.if_indextoname(interface), _ALL))
            except OSError:
                self.socket.close()
                raise
            os.write(self._file, _FILE)
        except OSError as error:
            os.close(self._file)
            raise StageError("network: capture", error.errno or errno.EIO, path) from None

    def drain(self) -> bool:
        """Write what the kernel has handed over; return whether there was anything."""
        found = False
        while True:
            at = self._next * _BLOCK_SIZE
            _, _, status, count, first = _BLOCK.unpack_from(self._ring, at)
            if not status & _OURS:
                return found
            found = True
            self._write(self._records(at + first, count))
            _STATUS.pack_into(self._ring, at + _STATUS_AT, _KERNELS)
            self._next = (self._next + 1) % self._blocks

    def _records(self, at: int, count: int) -> bytes:
        ring = self._ring
        parts = []
        for _ in range(count):
            onward, seconds, nanoseconds, length, whole, _, data = _PACKET.unpack_from(ring, at)
            index, _, kind = _FROM.unpack_from(ring, at + _FROM_AT)
            if index != _LOOPBACK or kind != _OUTGOING:  # there, all are seen twice
                parts.append(_RECORD.pack(seconds, nanoseconds, length, whole))
                parts.append(ring[at + data : at + data + length])
            at += onward
        self.packets += len(parts) // 2
        return b"".join(parts)

    def _write(self, data: bytes) -> None:
        # A part of a record would make the file unreadable from there on.
        try:
            end = os.lseek(self._file, 0, os.SEEK_CUR)
            if os.write(self._file, data) < len(data):
                os.ftruncate(self._file, end)
                os.lseek(self._file, end, os.SEEK_SET)
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """Count what was lost, and close the files."""
        with contextlib.suppress(OSError):
            counts = self.socket.getsockopt(_SOL_PACKET, _STATISTICS, 12)
            self.dropped += struct.unpack("=III", counts)[1]
        self._ring.close()
        self.socket.close()
        os.close(self._file)


class Capture:
    """Packets that are being written, until `stop` or the end of a ``with`` block."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self._taps = taps
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._running = True
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._work, name="nsisolate-capture", daemon=True)
        self._thread.start()

    @property
    def packets(self) -> int:
        """How many have been written so far; all of them only after `stop`."""
        return sum(tap.packets for tap in self._taps)

    @property
    def dropped(self) -> int:
        """How many were lost; known after `stop`."""
        return sum(tap.dropped for tap in self._taps)

    def stop(self, *, flush: bool = True) -> Capture:
        """End it. Packets from before the call are in the file when it returns.

        Args:
            flush: False if the file will not be read.
        """
        if not self._running or os.getpid() != self._owner:
            return self
        self._running = False
        if flush:
            # Nothing says whether a block is still being filled; it is handed over in time.
            time.sleep(3 * _RETIRE_MS / 1000)
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for tap in self._taps:
            if flush:
                tap.drain()
            tap.close()
        os.close(self._wake)
        return self

    def __enter__(self) -> Capture:  # noqa: PYI034 -- typing.Self is newer than 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        taps = {tap.socket.fileno(): tap for tap in self._taps}
        for fd in taps:
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake:
                    return
                taps[fd].drain()
