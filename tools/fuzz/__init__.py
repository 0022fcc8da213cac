"""The report stream of a test process under a fuzzer: what is fed to the runner, and the rules."""
