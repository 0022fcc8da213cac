"""What connects a sandbox with the host: ``net="veth"``, ``nat`` and ``forward``.

The runner makes the host's side, the test process its own, and the relay is a bare process. It
imports network/topology/, sandbox/ and core/ and not pytest.
"""
