"""The demo: an instrumented application, the whole pipeline, kill -9 at random instants, and a proof of the counts.

Imported by no other package. Invariant: the expected counts come from the oracle and the files that producers wrote
before sending.
"""
