"""Loads the C core that `pipeline.native.build` has compiled."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import NamedTuple

from aggregators.columns import MakerOf, PythonColumns
from aggregators.native.columns import NativeColumns
from aggregators.native.interface import bind
from pipeline.native.build import library_path, sources_hash


class Loaded(NamedTuple):
    """The library, or None and then why Python does the work."""

    library: ctypes.CDLL | None
    why: str


def load(*, enabled: bool) -> Loaded:
    """The library of the present sources. Compiles nothing. Without the right library there is none, never an error."""
    if not enabled:
        return Loaded(None, "TIDEMARK_NATIVE is off")
    path = library_path()
    if not path.exists():
        return Loaded(None, "the C core is not built: run `make install` where a C compiler is")
    try:
        library = bind(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        return Loaded(None, f"the C core cannot be loaded: {error}")
    if library.tm_sources() != sources_hash().encode():
        return Loaded(None, f"{path} was built from other sources: remove it and run `make install`")
    return Loaded(library, "")


def maker_of(library: ctypes.CDLL | None) -> MakerOf:
    """What makes a partition's maker of columns: in C, or without a library in Python."""
    return PythonColumns if library is None else partial(NativeColumns, library)
