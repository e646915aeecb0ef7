"""The C core: the bytes of a record to rows of the archive and to columns of the fold.

`core.c` and its headers are plain C without Python.h; `interface.py` calls them through ctypes. The core takes only
what is plain and hands back everything else, which the Python code judges. Both give the same results. Nothing here
compiles or loads a library: `pipeline.native` does, and hands it in.
"""
