"""Rebuilds a view next to the live one and swaps it in while traffic goes on.

Imported by the commands; knows no Faust and gets log, stores and clock passed in. Invariant: a live view is replaced in
one step, and only by a view that reaches at least as far. An interrupted rebuild continues when it is run again.
"""
