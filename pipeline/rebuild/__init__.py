"""Builds a view again from the log, beside the live one, and swaps it in while traffic goes on.

Imported by the commands; knows no Faust and gets log, stores and clock passed in. The invariant it keeps: a live view
is replaced in one step, by one that reaches at least as far, or not at all; cut short anywhere, it goes on from there.
"""
