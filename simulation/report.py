"""The coverage of many runs as text, and the command that repeats a failing run."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Final

from simulation.faults import Fault
from simulation.run import RunResult

SHOWN_FAILURES_MAX: Final = 8
SHOWN_PAIRS_MAX: Final = 10


class Coverage:
    """The number of runs in which each kind of fault, and each pair of kinds, occurred."""

    def __init__(self) -> None:
        self.runs = 0
        self.kinds: Counter[Fault] = Counter()
        self.struck: Counter[Fault] = Counter()
        self.pairs: Counter[tuple[Fault, Fault]] = Counter()

    def add(self, counts: Counter[Fault]) -> None:
        """Add the faults of one run."""
        met = sorted(kind for kind, count in counts.items() if count)
        self.runs += 1
        self.kinds.update(met)
        self.struck.update(counts)
        self.pairs.update(combinations(met, 2))

    def missing(self) -> Sequence[Fault]:
        """The kinds that occurred in no run."""
        return [kind for kind in Fault if not self.kinds[kind]]

    def missing_pairs(self) -> int:
        """The number of pairs of kinds that occurred together in no run."""
        return len(list(combinations(Fault, 2))) - len(self.pairs)

    def text(self) -> str:
        """A table of the kinds, the number of pairs that occurred, and the rarest pairs."""
        width = max(len(kind.value) for kind in Fault)
        rows = [f"  {'what befell':<{width}}  {'times':>9}  {'in runs':>8}"]
        rows += [f"  {kind.value:<{width}}  {self.struck[kind]:>9,}  {self.kinds[kind]:>8,}" for kind in Fault]
        pairs = len(list(combinations(Fault, 2)))
        rows.append(f"  {pairs - self.missing_pairs():,} of {pairs:,} pairs of kinds were met in one and the same run")
        rarest = sorted(combinations(sorted(Fault), 2), key=lambda pair: self.pairs[pair])[:SHOWN_PAIRS_MAX]
        rows += [f"  met in {self.pairs[pair]:>7,} runs: {pair[0].value}; {pair[1].value}" for pair in rarest]
        return "\n".join(rows)


def replay_command(seed: int, steps: int, only: Sequence[str]) -> str:
    """The command that repeats a seed with only these faults."""
    named = "".join(f" --only {shlex.quote(name)}" for name in only)
    return f".venv/bin/python -m simulation --seed {seed} --steps {steps}{named or ' --only none'}"


def failure_text(outcome: RunResult) -> str:
    """The failures of a run as text."""
    shown = [f"  {failure.where}: {failure.what}" for failure in outcome.failures[:SHOWN_FAILURES_MAX]]
    more = len(outcome.failures) - len(shown)
    return "\n".join([*shown, f"  and {more} more"] if more > 0 else shown)
