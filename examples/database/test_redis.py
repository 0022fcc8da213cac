"""Every test has a Redis of its own, on Redis's own port, also while another test has one.

Nothing chooses a free port, flushes the data between tests, or stops what a broken test left.
Try ``pytest --ns-jobs 2``. It takes redis-server and redis-cli (on Debian the package redis).
"""

import shutil
import subprocess

import pytest

pytestmark = [
    pytest.mark.isolated(timeout=50),
    pytest.mark.skipif(
        not (shutil.which("redis-server") and shutil.which("redis-cli")),
        reason="needs redis-server and redis-cli (apt-get install redis)",
    ),
]


@pytest.fixture
def redis(tmp_path):
    """Ask a server that has just been started; like everything here, it ends with the test."""
    server = subprocess.Popen(
        ["redis-server", "--save", "", "--dir", tmp_path], stdout=subprocess.PIPE, text=True
    )
    for line in server.stdout:
        if "Ready to accept connections" in line:
            break
    else:
        pytest.fail(f"redis-server ended with status {server.wait()}")

    def ask(*words):
        done = subprocess.run(["redis-cli", *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    yield ask
    server.terminate()
    server.communicate()


@pytest.mark.parametrize("customer", ["ann", "bob", "eve"])
def test_first_order_of_each_has_number_1(redis, customer):
    assert redis("INCR", "orders") == "1"
    assert redis("SET", "order:1", customer) == "OK"
    assert redis("GET", "order:1") == customer


def test_nothing_of_the_others_is_there(redis):
    assert redis("DBSIZE") == "0"


def test_flushes_whatever_it_likes(redis):
    assert redis("FLUSHALL") == "OK"
