"""What runs in the template and in a test process: pytest's protocol for one test.

The template forks test processes, a test process runs its tests and sends frames. It imports
reports/, network/, files/, cgroups/, sandbox/, spec/ and core/, and pytest.
"""
