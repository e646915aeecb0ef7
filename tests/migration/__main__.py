"""`make migration`: prints what happens, the report of the migration and the kills; exits 1 at the first wrong cent."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time

from pipeline.commands.migration import lines
from tests.migration.walk import Failed, walk

CUSTOMERS = 340


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.migration", description=__doc__)
    parser.add_argument(
        "--customers", type=int, default=CUSTOMERS, help="how many; more than 11, so that three waves go"
    )
    parser.add_argument("--seed", type=int, default=None, help="draws the kills; a fresh one if unset")
    return parser.parse_args()


def main() -> int:
    """Run the walk."""
    given = arguments()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    logging.disable(logging.WARNING)
    print(f'seed {seed}: `make migration ARGS="--seed {seed}"` runs it again', flush=True)
    began_s = time.monotonic()
    try:
        found, report = asyncio.run(walk(given.customers, seed, lambda text: print(text, flush=True)))
    except Failed as error:
        print(f"FAILED: {error}")
        return 1
    print()
    print("\n".join(lines(report)))
    print(f"\n{'a process ended during':<28}{'times':>7}")
    for name, count in sorted(found.kills.items()):
        print(f"{name:<28}{count:>7}")
    took_s = time.monotonic() - began_s
    print(
        f"\n{given.customers} subscriptions, {found.kills.total()} kills, 0 errors, every cent exact, in {took_s:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
