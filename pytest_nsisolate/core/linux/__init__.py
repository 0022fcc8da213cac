"""The kernel's interfaces: system calls, /proc, sysctl settings, mounts, netlink, terminals.

Every process of a session uses them. They import `core.errors` and each other, and not pytest.
"""
