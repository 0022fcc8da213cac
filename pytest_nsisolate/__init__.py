"""Isolated test execution: every marked test runs in Linux namespaces of its own.

Imports point downward only: ``plugin`` and ``cli`` on top, then ``report`` and
``doctor``, then ``runner`` and ``template``, then what runs inside a sandbox
(``child``, ``init``, ``keeper``), then one module per Linux mechanism, and the
values (``spec``, ``wire``, ``syscalls``) at the bottom.
"""

__version__ = "0.1.0"
