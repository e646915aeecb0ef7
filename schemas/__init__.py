"""Frozen values, the vocabulary, and the protocols that outer layers implement.

Everybody may import this package; it imports nothing of the project and does no I/O.
The invariant it keeps: a word means one thing everywhere.
"""
