"""The simulator's settings, state, faults, and the locks that reject concurrent calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stripe_simulator.clock import Clock
from stripe_simulator.database import Database
from stripe_simulator.errors import conflict
from stripe_simulator.faults import FaultPlan

IDENTIFIER_WINDOW_MS = 24 * 3_600_000
IDEMPOTENCY_WINDOW_MS = 24 * 3_600_000
PAST_MAX_S = 35 * 86_400
FUTURE_MAX_S = 300


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Settings of the simulator. `latency_s` and `hold_s` are real time, all others are of the simulator's clock.

    `summary_lag_s`: from receipt until summaries contain an event. `validation_delay_s`: from the end of a validation
    window until its errors are reported. `latency_s`: the execution time of a meter event, during which another event
    of the same customer and meter gets 409. `keys`: the valid API keys; None accepts every well-formed key.
    """

    account: str = "acct_simulator"
    summary_lag_s: float = 5.0
    validation_window_s: float = 10.0
    validation_delay_s: float = 5.0
    latency_s: float = 0.0
    hold_s: float = 120.0
    keys: frozenset[str] | None = None
    seed: int = 0

    @property
    def summary_lag_ms(self) -> int:
        """The summaries' lag in milliseconds."""
        return round(self.summary_lag_s * 1_000)


class Simulator:
    """State, clock, faults. Used by one event loop; `close()` releases the file."""

    def __init__(
        self, clock: Clock, settings: SimulatorSettings = SimulatorSettings(), state: Path | None = None
    ) -> None:
        self.clock = clock
        self.settings = settings
        self.database = Database(state)
        self.faults = FaultPlan(settings.seed)
        self.calls: dict[str, int] = {}
        self._locks: set[tuple[str, ...]] = set()
        self._requests = 0

    def close(self) -> None:
        """Close the state. Safe to call twice."""
        self.database.close()

    def now_ms(self) -> int:
        """The simulator's time in milliseconds."""
        return self.clock.now_ms()

    def next_request_id(self) -> str:
        """A new `Request-Id`."""
        self._requests += 1
        return f"req_{self._requests:014d}"

    @contextmanager
    def lock(self, name: tuple[str, ...]) -> Iterator[None]:
        """Lock a name during one call. Raises `ApiError` (409) if another call has locked the name."""
        if name in self._locks:
            raise conflict()
        self._locks.add(name)
        try:
            yield
        finally:
            self._locks.discard(name)

    def create_customer(self, livemode: bool, fields: dict[str, object], identifier: str = "") -> dict[str, object]:
        """Add a customer and return its body in Stripe's form."""
        with self.database.transaction():
            sequence = self.database.next_seq("customers")
            body: dict[str, object] = {
                "id": identifier or f"cus_{sequence:014d}",
                "object": "customer",
                "address": None,
                "balance": 0,
                "created": self.now_ms() // 1_000,
                "currency": None,
                "default_source": None,
                "delinquent": False,
                "description": None,
                "discount": None,
                "email": None,
                "invoice_prefix": f"SIM{sequence:05d}",
                "invoice_settings": {
                    "custom_fields": None,
                    "default_payment_method": None,
                    "footer": None,
                    "rendering_options": None,
                },
                "livemode": livemode,
                "metadata": {},
                "name": None,
                "next_invoice_sequence": 1,
                "phone": None,
                "preferred_locales": [],
                "shipping": None,
                "tax_exempt": "none",
                "test_clock": None,
                **fields,
            }
            self.database.insert(
                "INSERT INTO customers(seq, id, livemode, body) VALUES (?, ?, ?, ?)",
                (sequence, str(body["id"]), int(livemode), json.dumps(body)),
            )
        return body

    def customer_exists(self, livemode: bool, identifier: str) -> bool:
        """Whether this mode has the customer."""
        row = self.database.row("SELECT 1 FROM customers WHERE id = ? AND livemode = ?", (identifier, int(livemode)))
        return row is not None
