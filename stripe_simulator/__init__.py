"""A stateful simulator of the part of Stripe's API that this project uses.

It stands alone: it imports nothing of the project, and only tests, the embedded shape and `python -m
stripe_simulator` may start it. The invariant it keeps: what it answered with 2xx is in its state before the
answer leaves, and nothing under `/v1` or `/v2` behaves in a way that Stripe's documents or observed answers
contradict; where they are silent, README.md lists our choice under "known differences".
"""

from stripe_simulator.app import create_app
from stripe_simulator.clock import Clock, parse_clock
from stripe_simulator.faults import Fault, FaultKind, FaultPlan
from stripe_simulator.simulator import Simulator, SimulatorSettings

__all__ = [
    "Clock",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "Simulator",
    "SimulatorSettings",
    "create_app",
    "parse_clock",
]
