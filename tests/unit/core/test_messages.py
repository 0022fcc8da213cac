"""The messages between runner, template and test process."""

from __future__ import annotations

import pytest

from pytest_nsisolate.core import messages
from pytest_nsisolate.core.messages import MAX_FDS, MESSAGE, Order, pack_fork

FLAGS = 0x7E020080  # all namespaces


@pytest.mark.parametrize("item", [0, 7, (1 << 31) - 1])
@pytest.mark.parametrize("groups", [(), (16, 17, 18)])
@pytest.mark.parametrize("flags", [FLAGS, FLAGS | messages.SNAPSHOT, 0])
def test_an_order_arrives_as_it_was_sent(item: int, groups: tuple[int, ...], flags: int) -> None:
    sent = Order(3, item, flags, 10, 11, 12, 13, 14, 15 if flags else -1, groups)
    kind, number, value = MESSAGE.unpack(pack_fork(sent.number, sent.item, sent.flags))
    assert kind == messages.FORK
    assert Order.unpack(number, value, sent.descriptors()) == sent


def test_an_order_of_a_hierarchy_each_fits_into_a_message() -> None:
    order = Order(0, 0, FLAGS, 1, 2, 3, 4, 5, 6, tuple(range(7, MAX_FDS + 1)))
    assert len(order.descriptors()) == MAX_FDS


def test_no_two_messages_have_one_kind() -> None:
    names = ("FORK", "KILL", "PID", "ENDED", "FAILED", "UP", "LEFT", "END")
    assert len({getattr(messages, name) for name in names}) == len(names)
