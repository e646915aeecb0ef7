"""Benchmarks of the product and its parts. `make bench` runs all; docs/benchmarks.md explains the figures.

Imported by no other package. Invariant: every time is also a ratio to a bare consume-and-decode of the same bytes in
the same run, because absolute times of a shared machine are not comparable.
"""
