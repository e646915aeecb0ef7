"""Deliberate defects of bindings: records that come again, and the instant at which another payer takes effect."""

from __future__ import annotations

from typing import Any, Final

import aggregators.bindings
import aggregators.placement
import aggregators.scan
from aggregators.meters import successor
from tests.simulation.mutant import Mutant


def _pays_before_the_cut(original: Any) -> Any:
    def named(state: Any, binding: Any, effective_ms: int) -> Any:
        _, is_cut = original(state, binding, effective_ms)
        asked_ms = binding.effective_from_ms
        before = tuple(old for old in state.customers if old.from_ms < asked_ms)
        return original(state.model_copy(update={"customers": before}), binding, asked_ms)[0], is_cut

    return named


def _payer_cuts_nothing(original: Any) -> Any:
    return lambda *arguments: (original(*arguments)[0], False)


BINDINGS: Final = (
    Mutant(
        "a binding that comes again counts", aggregators.bindings, "is_repeated",
        lambda _made: lambda *_arguments: False,
    ),
    Mutant(
        "a meter set that comes again counts", aggregators.scan, "in_force_after",
        lambda _made: lambda current, proposed: proposed if current is None else successor(current, proposed),
    ),
    Mutant("another payer pays before the cut", aggregators.bindings, "_named", _pays_before_the_cut),
    Mutant(
        "another payer pays for late usage", aggregators.placement, "is_payable_in",
        lambda _made: lambda *_arguments: True,
    ),
    Mutant("another payer cuts no period", aggregators.bindings, "_named", _payer_cuts_nothing),
)  # fmt: skip
