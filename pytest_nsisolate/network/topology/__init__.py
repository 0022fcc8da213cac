"""Networks within one test: ``net="a -- b"`` is planned, built, changed, shaped and captured.

The runner plans a topology; the test process builds and changes it. It imports spec/ and core/
and not pytest.
"""
