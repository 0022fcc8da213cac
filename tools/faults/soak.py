"""A soak: thousands of tests with random endings in one session, and what its helpers grow to.

Each test's ending follows from its number and the seed, so that what is reported can be held
against what has to be. Runner, keeper and template are measured from outside as it goes: what
they hold at the end is held against what they held early on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from helpers.hosts import NOBODY, host_state, proc_bytes, wait_gone
from helpers.run import Result, Run, Running

Endings = dict[str, tuple[float, str]]

ENDINGS: Endings = {
    "passes": (50, "passed"),
    "prints": (5, "passed"),
    "fails": (10, "failed"),
    "skips": (4, "skipped"),
    "errs_in_setup": (3, "error"),
    "errs_in_teardown": (3, "passed+error"),
    "crashes": (5, "failed"),
    "exits": (4, "failed"),
    "exits_with_nothing_said": (3, "failed"),
    "kills_itself": (3, "failed"),
    "kills_all": (2, "failed"),
    "closes_everything": (2, "failed"),
    "leaves_processes": (3, "passed"),
    "is_out_of_time": (1, "failed"),
    "says_nonsense": (2, "failed"),
}
"""Of each ending how often it comes, and what it is reported as."""
HOSTILE: Endings = dict.fromkeys(
    [
        *("forks", "sessions", "threads", "programs", "replaces_itself", "eats_memory"),
        *("stops_all", "fills_directories", "opens_everything"),
        *("floods_output", "floods_reports", "reports_much"),
    ],
    (0.3, "failed|error|failed+error"),
)
"""The same, with ``--hostile``: of what takes a machine, or a run, where nothing holds it."""

SOURCE = """
    import random, threading
    ENDINGS = {endings}

    def end_of(n):
        return random.Random({seed} * 1_000_003 + n).choices(*zip(*ENDINGS.items()))[0]

    @pytest.fixture
    def around(n):
        if end_of(n) == "errs_in_setup":
            raise LookupError("in setup")
        yield
        if end_of(n) == "errs_in_teardown":
            raise LookupError("in teardown")

    def passes(): pass
    def prints(): print("x" * random.randrange(100_000))
    def fails(): assert 0
    def skips(): pytest.skip("so it is")
    def errs_in_setup(): raise SystemError("not reached")
    def errs_in_teardown(): pass
    def crashes(): ctypes.string_at(0)
    def exits(): os._exit(random.randrange(100))
    def exits_with_nothing_said(): os._exit(0)
    def kills_itself(): os.kill(os.getpid(), random.choice([9, 15, 11, 6]))
    def kills_all():
        os.kill(-1, 9)
        os.kill(os.getpid(), 9)
    def closes_everything():
        os.closerange(3, 1024)
    def leaves_processes():
        for _ in range(3):
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
    def is_out_of_time(): signal.pause()
    def tries(do):
        while True:
            try:
                do()
            except (OSError, RuntimeError):
                pass
    def forks(): tries(os.fork)
    def sessions(): tries(lambda: os.fork() or os.setsid())
    def threads(): tries(lambda: threading.Thread(target=threads).start())
    def programs():
        shell = ["sh", "-c", "while :; do /bin/true & done"]
        tries(lambda: os.fork() or os.execv("/bin/sh", shell))
    def replaces_itself():
        again = "import os, sys; os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])"
        os.execv(sys.executable, [sys.executable, "-Sc", again])
    def eats_memory():
        held = []
        tries(lambda: os.fork() or [held.append(bytearray(b"x") * (1 << 20)) for _ in range(64)])
    def stops_all():
        for _ in range(20):
            if os.fork() == 0:
                tries(lambda: None)
        os.kill(-1, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        tries(lambda: None)
    def fills_directories():
        for place in ("/tmp", "/var/tmp", "/dev/shm"):
            with open(place + "/full", "wb") as file:
                try:
                    while True:
                        file.write(bytes(1 << 20))
                except OSError:
                    pass
        tries(lambda: None)
    def opens_everything():
        held = []
        tries(lambda: held.append(os.open("/dev/null", os.O_RDONLY)))
    def floods_output():
        while True:
            os.write(1, bytes(1 << 20))
    def floods_reports():
        frame = b'["warning",[' + b"0," * (1 << 20) + b"0]]"
        frame = len(frame).to_bytes(4, "big") + frame
        for fd in range(200, 260):
            try:
                if os.readlink(f"/proc/self/fd/{{fd}}").startswith("pipe:"):
                    while True:
                        os.write(fd, frame)
            except OSError:
                continue
        assert 0
    def reports_much(): pytest.fail("x" * (300 << 20), pytrace=False)
    def says_nonsense():
        for fd in range(200, 260):
            try:
                if os.readlink(f"/proc/self/fd/{{fd}}").startswith("pipe:"):
                    os.write(fd, b"nonsense")
            except OSError:
                continue

    def marked(n):
        timeout = {short} if end_of(n) in {shortly} else {timeout}
        return pytest.param(n, marks=pytest.mark.isolated(timeout=timeout))

    @pytest.mark.parametrize("n", map(marked, range({count})))
    def test_it(n, around):
        globals()[end_of(n)]()
"""
TIMEOUT, SHORT = 30, 3
"""Seconds for each test, since on a busy host it may take some; for one that is to exceed it."""
SLOW = {"floods_output", "floods_reports", "reports_much"}
"""Of the hostile ones those that another limit ends than their time."""
EVERY = 2.0
"""Seconds between two looks at the helpers."""


def expected(endings: Endings, seed: int, n: int) -> tuple[str, str]:
    """How test number *n* ends, and what it has to be reported as: one of these."""
    weights = {name: weight for name, (weight, _) in endings.items()}
    dice = random.Random(seed * 1_000_003 + n)
    (name,) = dice.choices(*zip(*weights.items(), strict=True))
    return name, endings[name][1]


def children(pid: int) -> list[int]:
    """The children of a process; unlike `marked`, it asks nothing of a fork bomb's processes."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def look(running: Running) -> dict[str, dict[str, int]]:
    """What runner, keeper and template hold at this moment."""
    runner = running.process.pid
    found = {"runner": held(runner)}
    for pid in children(runner):
        if b"keeper" not in proc_bytes(pid, "cmdline"):
            found["template"] = held(pid)
            continue
        found["keeper"] = held(pid)
        for inner in children(pid):
            found["inner keeper"] = held(inner)
    return found


def held(pid: int) -> dict[str, int]:
    """Descriptors, kibibytes in memory, and children that nobody has waited for."""
    status = dict(line.split(":", 1) for line in proc_bytes(pid, "status").decode().splitlines())
    try:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        descriptors = 0
    zombies = sum(b") Z " in proc_bytes(child, "stat") for child in children(pid))
    memory = int(status.get("VmRSS", "0 kB").split()[0])
    return {"fds": descriptors, "KiB": memory, "zombies": zombies}


def soak(
    run: Run, endings: Endings, count: int, *, seed: int, jobs: int, limit: float
) -> tuple[Result, list[dict[str, dict[str, int]]]]:
    """Run that many tests, or as many as the time allows; how they ended, and what was held."""
    weights = {name: weight for name, (weight, _) in endings.items()}
    run.tests(
        SOURCE.format(
            endings=weights,
            seed=seed,
            timeout=TIMEOUT,
            short=SHORT,
            shortly={"is_out_of_time", *HOSTILE.keys() - SLOW},
            count=count,
        )
    )
    running = run.start(f"--ns-jobs={jobs}", "-q", "--tb=no", "-p", "no:cacheprovider")
    looks, deadline = [], time.monotonic() + limit
    try:
        while running.process.poll() is None:
            looks.append(look(running))
            if time.monotonic() > deadline:
                running.process.send_signal(signal.SIGINT)
                deadline = float("inf")
            time.sleep(EVERY)
        left = wait_gone(running.marker)
        assert not left, f"left running: {left}"
    finally:
        running.kill()
    return running.result(ret=running.process.returncode), looks


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.soak", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="interrupt the session after so long"
    )
    parser.add_argument("--hostile", action="store_true", help="with fork bombs and the like")
    parser.add_argument("--nobody", action="store_true", help="as a user without rights")
    args = parser.parse_args()
    endings = ENDINGS
    if args.hostile:
        # Amid bombs a test may not get to react within its second of grace.
        endings = {**ENDINGS, **HOSTILE, "is_out_of_time": (1, "failed|failed+error")}
    # Started in the background of a shell, pytest would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path = Path(tempfile.mkdtemp(prefix="faults-"))
    if args.nobody:
        os.chown(path, NOBODY, NOBODY)
    run = Run(path=path, uid=NOBODY if args.nobody else None)
    before, begin = host_state(), time.monotonic()
    try:
        result, looks = soak(
            run, endings, args.count, seed=args.seed, jobs=args.jobs, limit=args.seconds
        )
    finally:
        shutil.rmtree(path)
    seconds = time.monotonic() - begin
    # Where the session was interrupted the last one may have begun and no more.
    interrupted = result.ret == 2
    count = len(result.verdicts) - 1 if interrupted else args.count
    wrong, ended = {}, Counter[str]()
    for n in range(count):
        name = f"test_it[{n}]"
        ending, allowed = expected(endings, args.seed, n)
        ended[ending] += ending in HOSTILE
        found = str(result.verdicts.get(name))
        if found not in allowed.split("|"):
            texts = [one.text for one in result.phases if name in one.nodeid and one.text]
            lines = [line for text in texts for line in text.splitlines() if line.strip()]
            wrong[name] = f"{ending}: {found} and not {allowed}: {lines[:12]}"
    print(
        f"{count} of {args.count} tests, seed {args.seed}, --ns-jobs={args.jobs}, "
        f"in {seconds:.0f} s{', then interrupted' if interrupted else ''}"
    )
    print(f"outcomes: {dict(Counter(result.verdicts.values()))}")
    if args.hostile:
        print(f"hostile: {dict(+ended)}")
    print(f"other than they have to be: {len(wrong)}", *list(wrong.items())[:20], sep="\n  ")
    left = host_state() - before
    print(f"left behind: {sorted(left) or 'nothing'}")
    # The first looks are at a session that is starting, the last at one that ends.
    looks = [one for one in looks if len(one) == 4]
    for role in looks[0] if len(looks) > 8 else ():
        early, late = looks[2 : len(looks) // 4 + 3], looks[-len(looks) // 4 : -1]
        for what in ("fds", "KiB", "zombies"):
            first, last = (max(one[role][what] for one in part) for part in (early, late))
            print(f"{role}: {what} at most {first} in the first quarter, {last} in the last")
    internal = "INTERNALERROR" in result.out + result.err
    print(json.dumps({"ret": result.ret, "internal error": internal}))
    return 1 if wrong or left or internal or result.ret not in (1, 2) else 0


if __name__ == "__main__":
    sys.exit(main())
