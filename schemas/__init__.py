"""Frozen values, the vocabulary, and the protocols that outer layers implement.

Every package may import this one; it imports nothing of the project and does no I/O.
The invariant it keeps: a word has one meaning everywhere.
"""
