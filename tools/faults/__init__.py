"""Faults on the path of a session: each system call fails once, each process is killed at each.

`supervisor` makes one call of one process fail, or kills it there; `calls` says which calls and
errnos, `roles` which process is which, `sessions` what is run, `judge` what is wrong with how a
run ended. ``python -m faults`` tries them all and prints the figures.
"""
