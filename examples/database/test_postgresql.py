"""Every test has a PostgreSQL of its own on port 5432, with the data already in it.

A snapshot can't hold a running server: it is a process, and a fork copies only the process that
forks. It holds files, though. So the fixture of the module makes the database, loads it, and stops
the server again; each test starts a server of its own on a copy-on-write view of these files.
What a test writes to them ends with it.

Try ``pytest --ns-jobs 2``. It takes the server's programs (on Debian the package postgresql).
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PORT = 5432


def programs():
    """Find the directory of the newest server that is installed; None if there is none."""
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    debian = sorted(debian, key=lambda path: float(path.parent.name))  # 9.6, 15
    named = [Path(found).parent for found in [shutil.which("postgres")] if found]
    complete = [
        path
        for path in [*debian, *named]
        if all((path / name).exists() for name in ("initdb", "pg_ctl", "psql"))
    ]
    return complete[-1] if complete else None


BIN = programs()

pytestmark = [
    pytest.mark.isolated(snapshot="module", timeout=120),
    pytest.mark.skipif(BIN is None, reason="needs PostgreSQL (apt-get install postgresql)"),
]


def postgresql(program, *words, **options):
    """Run one of its programs. The server refuses to be root, so root runs it as somebody else."""
    if os.geteuid() == 0:
        options |= {"user": 65534, "group": 65534, "extra_groups": []}
    done = subprocess.run(
        [BIN / program, *words],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def sql(statement):
    """Give what psql prints for it."""
    return postgresql(
        "psql", "-h", "localhost", "-p", f"{PORT}", "-U", "tester", "-d", "postgres", "-X", "-q",
        "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement,
    )  # fmt: skip


def start(data):
    """Start a server, and wait until it answers."""
    postgresql(
        "pg_ctl", "start", "--wait", "--timeout=100", "-D", data, "-l", data / "log",
        "-o", f"-p {PORT} -c unix_socket_directories=''",
    )  # fmt: skip


def stop(data):
    """Stop it, and wait until it has ended."""
    postgresql("pg_ctl", "stop", "--wait", "--timeout=100", "--mode=fast", "-D", data)


@pytest.fixture(scope="module")
def loaded():
    """Make a database once: the directory with its files, at rest."""
    data = Path("/tmp/loaded")  # in the sandbox's own /tmp
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(data, 65534, 65534)
    # Nobody needs these files after a crash of the machine.
    postgresql("initdb", "--no-sync", "--auth=trust", "--username=tester", "-D", data)
    with (data / "postgresql.conf").open("a") as file:
        file.write("fsync = off\nshared_buffers = 8MB\nmax_connections = 10\n")
    start(data)
    sql("CREATE TABLE books (title text PRIMARY KEY, copies int)")
    sql("INSERT INTO books SELECT 'volume ' || n, 3 FROM generate_series(1, 1000) AS n")
    stop(data)
    return data


@pytest.fixture
def database(loaded):
    """Start a server for one test."""
    start(loaded)
    yield
    stop(loaded)


@pytest.mark.parametrize("reader", ["ann", "bob"])
def test_lends_the_last_copies(database, reader):
    assert sql("SELECT count(*), sum(copies) FROM books") == "1000|3000"
    assert sql("UPDATE books SET copies = copies - 3 RETURNING copies").count("0") == 1000
    assert sql("SELECT sum(copies) FROM books") == "0", reader


def test_drops_the_table(database):
    sql("DROP TABLE books")
    assert sql("SELECT count(*) FROM pg_tables WHERE tablename = 'books'") == "0"
