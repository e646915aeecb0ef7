"""The demo: an instrumented application, the whole pipeline, kill -9 at random instants, and a proof of the counts.

Nothing imports it but the command line. The invariant it keeps: what it expects is recounted by the oracle from the
bytes the producers wrote down before they sent them.
"""
