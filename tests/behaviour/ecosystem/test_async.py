"""Asynchronous tests, isolated: pytest-asyncio, anyio's plugin, pytest-trio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.plugins import load
from helpers.run import same

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

JOBS = (1, 2)
BOTH = pytest.mark.parametrize("jobs", JOBS)


@BOTH
def test_asyncio_of_every_scope(run: Run, jobs: int) -> None:
    """Loops and fixtures of every scope are made where the test is, and closed there."""
    load(run, "asyncio")
    run.tests("""
    import asyncio
    import pytest_asyncio

    closed = []

    @pytest_asyncio.fixture(loop_scope="session", scope="session")
    async def session_loop():
        yield asyncio.get_running_loop()

    @pytest_asyncio.fixture(loop_scope="class", scope="class")
    async def class_loop():
        yield asyncio.get_running_loop()

    @pytest_asyncio.fixture
    async def own_loop():
        yield asyncio.get_running_loop()

    async def test_own(own_loop):
        assert asyncio.get_running_loop() is own_loop

    @pytest.mark.asyncio(loop_scope="session")
    async def test_of_session(session_loop):
        assert asyncio.get_running_loop() is session_loop

    @pytest.mark.asyncio(loop_scope="class")
    class TestOfClass:
        async def test_one(self, class_loop):
            assert asyncio.get_running_loop() is class_loop

        async def test_two(self, class_loop):
            assert asyncio.get_running_loop() is class_loop

    async def test_subprocess():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(6 * 7)", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert out == b"42\\n"

    async def test_signal():
        came = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await came.wait()

    async def test_fails():
        await asyncio.sleep(0)
        assert 0, "after a sleep"

    async def test_task_of_its_own():
        asyncio.get_running_loop().create_task(asyncio.sleep(3600))

    def test_plain():
        pass
    """)
    same(run, "-o", "asyncio_mode=auto", jobs=[jobs])


@BOTH
def test_anyio_backends(run: Run, jobs: int) -> None:
    """Each test runs with asyncio and with trio, asynchronous fixtures too."""
    load(run, "anyio", "trio")
    run.tests("""
    import asyncio
    import anyio
    import trio

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def listener():
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            yield listener

    async def test_backend(anyio_backend_name):
        trio.lowlevel.current_task() if anyio_backend_name == "trio" else asyncio.current_task()

    async def test_talks(listener):
        async def serve(stream):
            async with stream:
                await stream.send(await stream.receive())

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, serve)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"
            group.cancel_scope.cancel()

    async def test_fails():
        await anyio.lowlevel.checkpoint()
        assert 0
    """)
    same(run, "-o", "trio_mode=false", "--tb=short", jobs=[jobs])


@BOTH
def test_anyio_of_a_module(run: Run, jobs: int) -> None:
    """Fixtures of module scope and their tests run in one loop."""
    load(run, "anyio")
    run.tests("""
    import asyncio

    pytestmark = pytest.mark.anyio

    @pytest.fixture(scope="module")
    def anyio_backend():
        return "asyncio"

    @pytest.fixture(scope="module")
    async def loop():
        yield asyncio.get_running_loop()

    @pytest.mark.parametrize("n", range(2))
    async def test_same_loop(loop, n):
        assert asyncio.get_running_loop() is loop
    """)
    same(run, jobs=[jobs])


@BOTH
def test_trio(run: Run, jobs: int) -> None:
    """Trio tests and fixtures, nurseries and the clock that jumps."""
    load(run, "trio")
    run.tests("""
    import trio

    @pytest.fixture
    async def server(nursery):
        return await nursery.start(trio.serve_tcp, echo, 0)

    async def echo(stream):
        async for data in stream:
            await stream.send_all(data)

    @pytest.mark.trio
    async def test_talks(server):
        stream = await trio.testing.open_stream_to_socket_listener(server[0])
        async with stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"

    @pytest.mark.trio
    async def test_jumps(autojump_clock):
        await trio.sleep(3600)

    @pytest.mark.trio
    async def test_fails():
        await trio.lowlevel.checkpoint()
        assert 0
    """)
    same(run, "--tb=short", jobs=[jobs])
