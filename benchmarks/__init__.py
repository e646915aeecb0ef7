"""Measurements of the whole and of its parts; `make bench` runs them all, docs/benchmarks.md says how to read them.

Nothing imports this package. The invariant: every time is also given as a ratio to a bare consume-and-decode of the
same bytes, measured in the same run, because absolute figures of a shared machine compare with nothing.
"""
