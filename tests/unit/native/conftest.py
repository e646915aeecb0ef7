"""The C core for these tests. See `OF_THE_CORE` in tests/conftest.py."""

from __future__ import annotations

import ctypes

import pytest

from tests.worlds.native import native_library


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The library."""
    return native_library()
