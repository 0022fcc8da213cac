"""Limits and counters: control groups of version 1 and 2, resource limits, perf events.

The runner and the ``nsisolate`` command make the groups; a test process joins its own. It
imports spec/ and core/ and not pytest.
"""
