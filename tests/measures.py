"""`make measures`: random histories of gauges, spans and sessions through the whole pipeline on fakes, each compared
with the naive oracle (S15). Prints the seeds that differ, each with the command that writes its history again; exits 1
if there is one."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Final

from tests.simulation.measure_mutants import MEASURES, seed_that_catches
from tests.worlds.measured_faults import differences_of

HISTORIES: Final = 1_000
SHOWN: Final = 10


def compare(seeds: Sequence[int]) -> int:
    """Write the histories; 1 if one differs."""
    bad = 0
    for seed in seeds:
        found = asyncio.run(differences_of(seed))
        if found:
            bad += 1
            print(f"seed {seed} differs: python -m tests.measures --seed {seed} --histories 1", flush=True)
            print(*(f"  {each}" for each in found[:SHOWN]), sep="\n", flush=True)
    print(f"{len(seeds)} histories, {bad} differ")
    return 1 if bad else 0


def try_defects(seeds: Sequence[int]) -> int:
    """Write histories under each defect until one differs; 1 if a defect is missed."""
    missed = 0
    for mutant in MEASURES:
        seed = seed_that_catches(mutant, seeds)
        missed += seed is None
        print(f"{mutant.name}: " + ("MISSED" if seed is None else f"caught by seed {seed}"), flush=True)
    return 1 if missed else 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.measures", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--histories", type=int, default=HISTORIES, help="how many seeds")
    parser.add_argument("--mutants", action="store_true", help="show that deliberate defects are caught instead")
    arguments = parser.parse_args()
    # A late binding makes periods of the past, whose reports are held back and said so.
    logging.disable(logging.WARNING)
    seeds = range(arguments.seed, arguments.seed + arguments.histories)
    return try_defects(seeds) if arguments.mutants else compare(seeds)


if __name__ == "__main__":
    sys.exit(main())
