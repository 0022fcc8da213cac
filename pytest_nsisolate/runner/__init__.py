"""The parent's side of test processes: which test runs when, and how each process ends.

It runs in the runner. It imports cgroups/, sandbox/, spec/ and core/ and not pytest.
"""
