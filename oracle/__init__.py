"""The oracle: what the counts must be, by a model too simple to be wrong.

Tests, the simulation and the demo may import it; it imports the standard library only. The invariant it keeps:
it shares no code with what it judges, so that one mistake cannot hide on both sides.
"""
