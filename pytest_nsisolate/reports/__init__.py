"""A report's way from the test process to pytest's hooks, and the report files.

One half serialises in the test process, the other rebuilds, replays and records in the runner.
It imports explain/, spec/ and core/, and pytest.
"""
