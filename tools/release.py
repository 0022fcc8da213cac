"""Build what a release consists of, and try it where there is no checkout.

The sdist is built from the checkout and the wheel from the sdist. twine reads both. The wheel is
installed into a fresh environment and holds what the checkout's package does; the tests of the
unpacked sdist are run with it: what needs a file that the sdist lacks fails. With arguments
behind ``--``, the tests that they name.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = "pytest_nsisolate"
QUICK = (
    *("tests/project", "tests/unit/spec/test_spec.py", "tests/unit/core/test_wire.py"),
    "tests/behaviour/isolation/test_isolation.py",
    "tests/behaviour/isolation/test_hooks_and_fixture.py",
    "tests/behaviour/reports/test_reports.py",
    *("tests/behaviour/documents/test_examples.py", "-k", "not unprivileged and not cluster"),
)
"""Some of everything: the whole suite runs with the wheel of the checkout in other environments."""


def say(*words: object) -> None:
    """Print a line, at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def run(*words: str | Path, cwd: Path) -> None:
    """Run a command; its failure is that of the release."""
    say("$", *words)
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTEST_ADDOPTS"}}
    status = subprocess.run(words, cwd=cwd, env=kept, check=False).returncode
    if status:
        sys.exit(f"release: {words[0]} ended with {status}")


def modules(names: list[str]) -> set[str]:
    """The files of the package among these."""
    found = {name for name in names if name.startswith(f"{PACKAGE}/")}
    return {name for name in found if "__pycache__" not in name and not name.endswith("/")}


def unpack(sdist: Path, target: Path) -> Path:
    """Unpack an sdist; the directory that is in it."""
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(target, filter="data")
        else:
            archive.extractall(target)
    return target / sdist.name.removesuffix(".tar.gz")


def main() -> None:
    """All of it, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="made anew")
    parser.add_argument("tests", nargs="*", default=QUICK, help="arguments of pytest")
    chosen = parser.parse_args()
    work = chosen.workdir.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    run(sys.executable, "-m", "build", "--outdir", work / "dist", CHECKOUT, cwd=work)
    (sdist,) = work.glob("dist/*.tar.gz")
    (wheel,) = work.glob("dist/*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=work)

    with zipfile.ZipFile(wheel) as archive:
        packed = modules(archive.namelist())
    there = [str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / PACKAGE).rglob("*")]
    there = [name for name in there if (CHECKOUT / name).is_file()]
    if packed != modules(there):
        sys.exit(f"release: the wheel and the checkout differ in {packed ^ modules(there)}")

    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / "bin" / "python"
    source = unpack(sdist, work)
    run(python, "-m", "pip", "install", "-q", "--upgrade", "pip", cwd=work)
    group = f"{source / 'pyproject.toml'}:test"
    run(python, "-m", "pip", "install", "-q", wheel, "--group", group, cwd=work)
    # The installed package, and not that of the sdist: the tests are to judge the wheel.
    shutil.rmtree(source / PACKAGE)
    run(work / "venv" / "bin" / "pytest", "-q", "-n", "2", *chosen.tests, cwd=source)
    say(f"release: {sdist.name} and {wheel.name} are fit")


if __name__ == "__main__":
    main()
