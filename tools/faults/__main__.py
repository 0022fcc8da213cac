"""Try every fault, and print what came of them; exit with 1 if one was not survived."""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from faults.campaign import Trial, attempt, faults, record, sample, workplace
from faults.sessions import SESSIONS, VERDICTS, Session
from faults.supervisor import Fault, Site, lacks_supervisor
from helpers.capabilities import CAPABILITIES
from helpers.hosts import host_state


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--sample", type=int, metavar="N", help="only so many of each session")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="so many sessions at once")
    parser.add_argument("--session", action="append", help="only this one; may be repeated")
    parser.add_argument("--only", default="", help="only faults with this in their text")
    parser.add_argument("--verbose", action="store_true", help="print how each session ended")
    args = parser.parse_args()
    reason = lacks_supervisor()
    if reason is not None:
        print(f"SKIPPED: {reason}")
        return 0
    trials: list[Trial] = []
    tried: set[Site] = set()
    begin, leavers = time.monotonic(), 0
    for session in SESSIONS:
        if args.session and session.name not in args.session:
            continue
        lacks = next(filter(None, (CAPABILITIES[name]() for name in session.needs)), None)
        if lacks is not None:
            print(f"SKIPPED: {session.name}: {lacks}", flush=True)
            continue
        with workplace(session) as folder:
            wanted = list(faults(session, record(session, folder), tried))
        wanted = [one for one in wanted if args.only in str(one)]
        if args.sample is not None:
            wanted = sample(wanted, args.sample, args.seed)
        before, found = state(), []
        with ProcessPoolExecutor(args.jobs) as pool:
            for trial in pool.map(functools.partial(one_trial, session), wanted):
                found.append(trial)
                tell(trial, verbose=args.verbose)
        # What the kernel does not free by itself of a runner that was killed is swept so.
        subprocess.run([sys.executable, "-m", "pytest_nsisolate", "gc"], check=True)
        left = state() - before
        if left:
            print(f"LEFT BEHIND by some of these: {sorted(left)}")
            leavers += 1
        print(f"{session.name}: {figures(found)}", flush=True)
        trials += found
    print(f"all, in {time.monotonic() - begin:.0f} s: {figures(trials)}")
    return 1 if leavers or any(trial.wrong for trial in trials) else 0


def state() -> Counter[str]:
    """What no session may leave on this host."""
    groups = Path("/sys/fs/cgroup").glob("**/nsisolate-*")
    return host_state() + Counter(f"cgroup {path}" for path in groups)


def one_trial(session: Session, fault: Fault) -> Trial:
    with workplace(session) as folder:
        return attempt(session, fault, folder)


def tell(trial: Trial, *, verbose: bool) -> None:
    if trial.wrong:
        print(f"NOT SURVIVED: {trial}", flush=True)
    elif verbose:
        came = "; ".join(trial.headlines) or ("as ever" if trial.reached else "not reached")
        line = f"{trial.session.name}: {trial.fault} ({trial.seconds:.1f} s): {came}"
        print(line, flush=True)


def figures(trials: list[Trial]) -> str:
    reached = [trial for trial in trials if trial.reached]
    survived = [trial for trial in reached if not trial.wrong]
    sites = len({trial.fault.site for trial in reached})
    kinds = Counter("kills" if not trial.fault.number else "errors" for trial in reached)
    unharmed = sum(trial.result.verdicts == VERDICTS for trial in survived)
    longest = max((trial.seconds for trial in trials), default=0.0)
    return (
        f"{len(reached)} faults at {sites} call sites ({kinds['errors']} errors, "
        f"{kinds['kills']} kills), {len(survived)} survived, {unharmed} of them without a mark; "
        f"{len(trials) - len(reached)} not reached; the longest session took {longest:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
