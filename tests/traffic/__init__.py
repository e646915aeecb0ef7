"""Seeded traffic: usage events as real producers send them, with everything that goes wrong on the way.

Tests, the simulation and the demo may import it; it imports the standard library and the oracle's partitioner only.
The invariant it keeps: the same arguments give the same bytes.
"""
