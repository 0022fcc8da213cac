"""Which files a sandbox sees, and which files of a test are kept on the host.

The runner decides; PID 1 executes the operations that come of it. What a test process uses
itself is `export` and `write_audit`. It imports sandbox/operations/, spec/ and core/ and not
pytest.
"""
