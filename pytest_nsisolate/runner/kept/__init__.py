"""Sandboxes that outlive their session: their register, and the custodian that holds them.

The runner hands them over, the custodian is a bare process, and the ``nsisolate`` command lists
and ends them. It imports cgroups/, sandbox/ and core/ and not pytest.
"""
