"""Networks of sandboxes: between the hosts of one test, and to the host."""
