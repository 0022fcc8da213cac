"""What pytest calls in the runner: hooks, options, markers, and the session of isolated tests.

It may import everything, and pytest. `hooks` imports next to nothing, so that a session without
isolated tests pays nothing.
"""
