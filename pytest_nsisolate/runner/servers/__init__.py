"""Who builds sandboxes and forks test processes for the runner: keeper, template and snapshots.

This is the runner's side of them, and runs in the runner. It imports sandbox/ and core/ and not
pytest.
"""
