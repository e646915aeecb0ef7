"""A stateful simulator of the part of Stripe's API that this project uses.

It imports no other package of the project. Only tests, the local deployment and `python -m stripe_simulator` start it.
The invariant: a change is in the state before its 2xx answer is sent, and nothing under `/v1` or `/v2` contradicts
Stripe's documents or observed answers. The choices for undocumented cases are in docs/stripe-simulator.md.
"""

from stripe_simulator.app import create_app
from stripe_simulator.clock import Clock, parse_clock
from stripe_simulator.faults import Fault, FaultKind
from stripe_simulator.settings import SimulatorSettings
from stripe_simulator.simulator import Simulator

__all__ = ["Clock", "Fault", "FaultKind", "Simulator", "SimulatorSettings", "create_app", "parse_clock"]
