"""What follows from the values of a spec."""

from __future__ import annotations

from pytest_nsisolate.spec.spec import Spec


def test_shared_namespaces() -> None:
    assert Spec(net="host").shared == ("net",)
    assert Spec(net="host", share=("net",)).shared == ("net",)
    assert Spec(share=("ipc",)).shared == ("ipc",)


def test_environment() -> None:
    current = {"PATH": "/bin", "LC_ALL": "C", "SECRET": "x"}
    assert Spec().environment(current) == current
    assert Spec(env="clean").environment(current) == {"PATH": "/bin", "LC_ALL": "C"}
    assert Spec(env={"SECRET": "y"}).environment(current) == {**current, "SECRET": "y"}
