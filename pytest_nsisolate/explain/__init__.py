"""From a failure to what it means on this host and to the command that fixes it.

The runner, a test process and the ``nsisolate`` command ask it when something has failed. It
imports spec/ and core/ and not pytest.
"""
