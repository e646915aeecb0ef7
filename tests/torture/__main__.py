"""`make torture`: prints what it does, the counts of its faults, the comparison; exits 1 on any difference."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.torture.compare import Compared
from tests.torture.plan import draw, kills_of
from tests.torture.run import Torture, run

MINUTES: Final = 15.0
SEEDS: Final = 1_000_000
GRACE_S: Final = 30.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=None, help="draws the strikes and the traffic; a fresh one if unset"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after this long the run has failed")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual number of strikes")
    parser.add_argument("--strikes", type=int, default=None, help="only so many strikes of the plan, for a quick look")
    parser.add_argument("--keep", type=Path, default=None, help="run in this folder and leave it there")
    return parser.parse_args()


def report(results: Sequence[Compared], torture: Torture) -> int:
    """Print the two tables; how many values differ."""
    print(f"\n{'what befell':<44}{'times':>7}")
    for name, count in sorted(torture.struck.items()):
        print(f"{name:<44}{count:>7}")
    lost = torture.services.clickhouse.faults() + torture.stripe_faults
    for name, count in sorted(lost.items()):
        print(f"{name:<44}{count:>7}")
    print(f"{'events handed to a worker again':<44}{torture.deployment.handed_again():>7}")
    print(f"\n{'kill -9 of':<44}{'times':>7}")
    for name, count in sorted(torture.kills.items()):
        print(f"{name:<44}{count:>7}")
    print(f"{'together':<44}{torture.kills.total():>7}")
    print(f"\n{'producers':<44}{'confirmed':>10}{'repeated':>10}")
    for way, count in sorted(torture.load.sent.items()):
        print(f"{way:<44}{count:>10}{torture.load.repeated[way]:>10}")
    print(f"\n{'customers at Stripe':<44}{'done':>10}{'refused':>10}")
    for what, count in sorted(torture.shop.done.items()):
        print(f"{what:<44}{count:>10}{torture.shop.refused[what]:>10}")
    print(f"\n{'compared with the oracle':<52}{'rows':>9}{'differ':>8}")
    for each in results:
        print(f"{each.store:<52}{each.rows:>9}{each.differing:>8}")
        for line in each.shown if each.differing else ():
            print(f"    {line}")
    return sum(each.differing for each in results)


async def bounded(folder: Path, seed: int, chosen: argparse.Namespace) -> int:
    """One run within its time; how many values differ."""
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {text}", flush=True)

    plan = draw(seed, chosen.scale)[: chosen.strikes]
    say(f"seed {seed}: {len(plan)} strikes, {kills_of(plan).total()} of them kills; at most {chosen.minutes:.0f} min")
    async with asyncio.timeout(chosen.minutes * 60):
        results, torture = await run(folder, seed, plan, say)
    differing = report(results, torture)
    say(f"seed {seed}: {'EXACT' if not differing else f'{differing} DIFFERENCES'}")
    return differing


def main() -> int:
    """The exit code."""
    chosen = arguments()
    # What a killed broker does to the producers here is counted, and no news.
    logging.disable(logging.ERROR)
    seed = random.SystemRandom().randrange(SEEDS) if chosen.seed is None else chosen.seed
    # Children die with this process, and this process at the latest here.
    faulthandler.dump_traceback_later(chosen.minutes * 60 + GRACE_S, exit=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            failed = asyncio.run(bounded(folder.resolve(), seed, chosen)) > 0
        except TimeoutError:
            traceback.print_exc()
            print(f"not at rest after {chosen.minutes:.0f} minutes: something never converges, or the machine is slow")
            failed = True
        except Exception:  # noqa: BLE001  whatever it was, the seed must be said
            traceback.print_exc()
            failed = True
    if failed:
        print(f"FAILED. Again: make torture ARGS='--seed {seed} --scale {chosen.scale:g}'")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
