"""The ``nsisolate`` command, and the doctor.

It runs as a process of its own; the doctor also runs for ``pytest --ns-doctor``. It imports
everything but plugin/, runner/ (except runner/kept/), testprocess/ and reports/, and not pytest.
"""
