"""What one test asks for, as pure values: the keys of the marker, their parsers and their merging.

The runner and the ``nsisolate`` command read it, and a test process gets the result. It imports
core/ and not pytest, and it changes nothing on the host.
"""
