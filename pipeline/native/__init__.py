"""Compiles and loads the C core of `aggregators.native`. Without a compiler, or with `TIDEMARK_NATIVE=0`, there is no
core, and Python does the same work with the same results at a lower speed.
"""
