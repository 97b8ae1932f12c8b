"""A coverage-guided fuzzer for all that reads foreign bytes, and the cases that it has found, as plain tests."""
