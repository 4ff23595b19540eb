"""Benchmarks: ratios against a peer within one run, printed as tables. Not part of `make test`."""
