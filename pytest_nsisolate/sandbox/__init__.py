"""Build one sandbox: the keeper, the PID 1 of each sandbox, and the runner's client of both.

The keeper and PID 1 are bare processes: they load a fixed list of modules. The client runs in
the runner and in the ``nsisolate`` command. It imports core/ and not pytest.
"""
