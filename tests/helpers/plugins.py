"""Other people's plugins, in the runs that tests make."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from .run import lacking

if TYPE_CHECKING:
    from .run import Run

MODULES = {
    "anyio": "anyio",
    "asyncio": "pytest_asyncio",
    "benchmark": "pytest_benchmark",
    "django": "pytest_django",
    "flask": "pytest_flask",
    "html": "pytest_html",
    "html_fixtures": "pytest_html",
    "hypothesispytest": "hypothesis",
    "isolated": "pytest_isolated",
    "metadata": "pytest_metadata",
    "pytest-bdd": "pytest_bdd",
    "pytest_cov": "pytest_cov",
    "pytest_jsonreport": "pytest_jsonreport",
    "pytest_mock": "pytest_mock",
    "random_order": "random_order",
    "randomly": "pytest_randomly",
    "rerunfailures": "pytest_rerunfailures",
    "rich": "pytest_rich",
    "sugar": "pytest_sugar",
    "timeout": "pytest_timeout",
    "trio": "pytest_trio",
    "xdist": "xdist",
}
"""Entry points that tests load, and the modules that have to be there for it."""


def require(*modules: str) -> None:
    """Skip where one isn't installed; fail where ``ecosystem`` must work."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            lacking("ecosystem", f"{module} is not installed")


def load(run: Run, *names: str) -> None:
    """Load these plugins in the runs, by the names of their entry points.

    Skips where one isn't installed; fails where ``ecosystem`` must work.
    """
    require(*(MODULES[name] for name in names))
    run.plugins += names
