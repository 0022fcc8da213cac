"""The steps that a sandbox is built of, as values that can be described and executed.

The runner plans them; the keeper and PID 1 execute them. They import core/ and not pytest.
"""
