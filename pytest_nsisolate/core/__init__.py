"""What every process needs: errors, outcomes, the wire format, system calls, /proc, netlink, locks.

It runs in every process of a session. It imports nothing of this package, and not pytest.
"""
