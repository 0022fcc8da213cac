"""What pyproject.toml says of the distribution is true."""

from __future__ import annotations

import re
from importlib import metadata

import pytest

import pytest_nsisolate
from helpers.project import ROOT


def bounds() -> dict[str, str]:
    """The lower bounds of the direct dependencies."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    found = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert found
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)', found[1]))


def test_lowest_versions_are_those_that_are_tested() -> None:
    """By ``tox -e lowest``."""
    text = (ROOT / "tox.ini").read_text("utf-8")
    section = text[text.index("[testenv:lowest]") :].partition("\n[")[0]
    pins = dict(re.findall(r"^ +([\w-]+)==([\d.]+)$", section, re.MULTILINE))
    assert pins.keys() == bounds().keys()
    for name, bound in bounds().items():
        parts = [*bound.split("."), "0", "0"][:3]
        assert pins[name] == ".".join(parts), name


def test_version_is_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    written = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)
    assert written == [metadata.version("pytest-nsisolate")] == [pytest_nsisolate.__version__]
    changes = re.findall(
        r"^## \[?([^]\s]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert written[0] in changes
    with pytest.raises(AttributeError, match="nothing"):
        getattr(pytest_nsisolate, "nothing")  # noqa: B009 -- to mypy there are all names


def test_classifiers_name_the_pythons_that_are_tested() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    claimed = re.findall(r"Python :: 3\.(\d+)", text)
    tox = (ROOT / "tox.ini").read_text("utf-8")
    full = next(line for line in tox.splitlines() if line.strip().startswith("full ="))
    assert set(claimed) == set(re.findall(r"py3(\d+)-", full))
    assert f'requires-python = ">=3.{claimed[0]}"' in text


def test_ci_runs_what_tox_does_by_default() -> None:
    """And each environment with the Python that it is named after."""
    tox = (ROOT / "tox.ini").read_text("utf-8")
    listed = tox[tox.index("env_list =") : tox.index("labels =")].split()[2:]
    default = {
        name.replace(f"{{{numbers}}}", number)
        for name in listed
        for numbers in re.findall(r"{(.+)}", name) or [""]
        for number in numbers.split(",")
    }
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    jobs = dict(re.findall(r'python: "([\d.]+)", env: (py[\w-]+)', workflow))
    assert all(env.startswith(f"py{python.replace('.', '')}-") for python, env in jobs.items())
    (checks,) = re.findall(r"- run: .ci/run -e ([\w,]+)", workflow)
    ahead = set(re.findall(r"env: ([\w-]+), ahead: true", workflow))
    assert {*re.findall(r"env: ([\w-]+)", workflow), *checks.split(",")} - ahead == default
