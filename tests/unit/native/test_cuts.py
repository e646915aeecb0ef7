"""Any log in any cuts, with the C core: the state is that of Python, record by record (I7)."""

from __future__ import annotations

import ctypes
from functools import partial

import pytest

from aggregators.native.columns import NativeColumns
from tests.worlds.any_log import AnyLog
from tests.worlds.cuts import stored_after_cuts, stored_record_by_record


@pytest.mark.parametrize("seed", range(1, 21), ids=lambda seed: f"seed-{seed}-")
async def test_the_core_leaves_the_state_of_one_record_after_another(library: ctypes.CDLL, seed: int) -> None:
    """The logs of the test of the same name in `tests/unit/aggregators`, where an oracle reads them too."""
    log = AnyLog(seed, checked=bool(seed % 2))
    await log.write()

    native = await stored_after_cuts(log, partial(NativeColumns, library))

    again = f"again: python -m pytest tests/unit/native/test_cuts.py -k seed-{seed}-"
    assert (await stored_record_by_record(log)).difference(native) == "", again
