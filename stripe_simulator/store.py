"""The objects of one mode, in Stripe's JSON form, and the snapshot events that follow from saving them."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from stripe_simulator.contract.parameters import api_version
from stripe_simulator.journal import Journal

Object = dict[str, Any]

# The beginning of an event's type, for the objects whose name it does not repeat.
EVENT_FAMILY: Final = {
    "subscription": "customer.subscription", "discount": "customer.discount", "dispute": "charge.dispute",
}  # fmt: skip
_ALPHABET: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# A digit of an id for each byte.
_DIGITS: Final = bytes(_ALPHABET[byte % len(_ALPHABET)] for byte in range(256))


def copied(value: Any) -> Any:
    """A deep copy of a JSON value."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


def previous_attributes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """The old values of what changed, as in `event.data.previous_attributes`: maps by key, lists whole."""
    changed: Object = {}
    for name, value in new.items():
        before = old.get(name)
        if before is value or (before == value and name in old):
            continue
        both_maps = isinstance(before, dict) and isinstance(value, dict)
        changed[name] = previous_attributes(before or {}, value) if both_maps else before
    changed.update({name: old[name] for name in old.keys() - new.keys()})
    return changed


class _Collection:
    """The objects of one kind in the order of their creation, and the indexed fields."""

    def __init__(self, indexed: Sequence[str]) -> None:
        self.objects: dict[str, Object] = {}
        self.order: list[str] = []
        self.places: dict[str, int] = {}
        self.indices: dict[str, dict[Any, list[int]]] = {field: {} for field in indexed}

    def put(self, identifier: str, body: Object | None) -> None:
        """Set or remove an object. A removed object keeps its place in the order."""
        old = self.objects.pop(identifier, None)
        if identifier not in self.places:
            self.places[identifier] = len(self.order)
            self.order.append(identifier)
        if body is not None:
            self.objects[identifier] = body
        for name, index in self.indices.items():
            before, after = old and old.get(name), body and body.get(name)
            if before != after and before is not None:
                index[before].remove(self.places[identifier])
            if before != after and after is not None:
                insort(index.setdefault(after, []), self.places[identifier])


@dataclass(eq=False)
class Store:
    """All objects of one mode. A stored object is never changed in place: `edit`, change the copy, `save`.

    `now_s` is the time of a clock. `subscribers` get every event in its transaction. `request` has the id and the
    Idempotency-Key of the request in execution; both are None for jobs.
    """

    journal: Journal
    name: str
    livemode: bool
    seed: str
    now_s: Callable[[str], int]
    indexed: Mapping[str, Sequence[str]]
    subscribers: list[Callable[[Object], None]] = field(default_factory=list)
    request: dict[str, str | None] = field(default_factory=lambda: {"id": None, "idempotency_key": None})
    _collections: dict[str, _Collection] = field(default_factory=dict)
    _ids: int = 0

    def __post_init__(self) -> None:
        self.journal.register(f"{self.name}.put", lambda body: self._set(body["object"], body["id"], body))
        self.journal.register(f"{self.name}.delete", lambda kind, identifier: self._set(kind, identifier, None))
        self.journal.register(f"{self.name}.ids", self._set_ids)

    def new_id(self, prefix: str, length: int = 14) -> str:
        """A new id such as `cus_…`, which depends on the seed and on the number of ids before it. `length`: to 32."""
        with self.journal.transaction():
            self.journal.change(f"{self.name}.ids", self._ids + 1)
        digest = hashlib.sha256(f"{self.seed}:{prefix}:{self._ids}".encode()).digest()
        return f"{prefix}_{digest[:length].translate(_DIGITS).decode()}"

    def get(self, kind: str, identifier: str) -> Object | None:
        """The stored object; do not change it."""
        collection = self._collections.get(kind)
        return collection.objects.get(identifier) if collection else None

    def find(self, identifier: str) -> Object | None:
        """The object of any kind with this id; do not change it."""
        bodies = (collection.objects.get(identifier) for collection in self._collections.values())
        return next((body for body in bodies if body is not None), None)

    def edit(self, kind: str, identifier: str) -> Object | None:
        """A copy to change and to `save`."""
        body = self.get(kind, identifier)
        return None if body is None else copied(body)

    def kinds(self) -> dict[str, int]:
        """The number of objects of each kind."""
        return {kind: len(collection.objects) for kind, collection in self._collections.items() if collection.objects}

    def newest(self, kind: str, field: str = "", value: object = None) -> Iterator[Object]:
        """The objects of a kind, newest first; with an indexed field, those that have this value."""
        for _, body in self.from_place(kind, field, value):
            yield body

    def place(self, kind: str, identifier: str) -> int | None:
        """The place of an object in the order of creation."""
        collection = self._collections.get(kind)
        return collection.places.get(identifier) if collection else None

    def from_place(
        self, kind: str, field: str = "", value: object = None, place: int | None = None, *, older: bool = True
    ) -> Iterator[tuple[int, Object]]:
        """(place, object) from next to a place on, backwards in time if `older`. Without a place from the newest."""
        collection = self._collection(kind)
        chosen: Sequence[int] = collection.indices[field].get(value, []) if field else range(len(collection.order))
        start = len(chosen) if place is None else bisect_left(chosen, place)
        newer = chosen[start + (start < len(chosen) and chosen[start] == place) :]
        for number in chosen[:start][::-1] if older else newer:
            body = collection.objects.get(collection.order[number])
            if body is not None:
                yield number, body

    def is_indexed(self, kind: str, field: str) -> bool:
        """Whether `newest` and `from_place` take this field."""
        return field in self.indexed.get(kind, ())

    def save(self, body: Object, *types: str) -> Object:
        """Store an object and create its events: of these types, or `….created` or `….updated`.

        Nothing is stored and no `….updated` is created if nothing changed. Returns the stored object.
        """
        kind, identifier = str(body["object"]), str(body["id"])
        old = self.get(kind, identifier)
        previous = None if old is None else previous_attributes(old, body)
        if not types:
            if old is not None and not previous:
                return old
            types = (f"{EVENT_FAMILY.get(kind, kind)}.{'created' if old is None else 'updated'}",)
        with self.journal.transaction():
            self.put(body)
            for event_type in types:
                self._create_event(event_type, body, previous)
        return body

    def put(self, body: Object) -> Object:
        """Store an object without an event."""
        with self.journal.transaction():
            self.journal.change(f"{self.name}.put", body)
        return body

    def delete(self, body: Object) -> Object:
        """Remove an object and create its `….deleted` event. Returns Stripe's answer to the deletion."""
        kind, identifier = str(body["object"]), str(body["id"])
        with self.journal.transaction():
            self._create_event(f"{EVENT_FAMILY.get(kind, kind)}.deleted", self.get(kind, identifier) or body)
            return self.remove(kind, identifier)

    def remove(self, kind: str, identifier: str) -> Object:
        """Remove an object without an event. Returns Stripe's answer to the deletion."""
        with self.journal.transaction():
            self.journal.change(f"{self.name}.delete", kind, identifier)
        return {"id": identifier, "object": kind, "deleted": True}

    def announce(self, event_type: str, snapshot: Object, clock: str = "") -> None:
        """Create an event about an object that has no id and is not stored."""
        with self.journal.transaction():
            self._create_event(event_type, snapshot, clock=clock)

    def _create_event(
        self, event_type: str, body: Object, previous: Object | None = None, clock: str | None = None
    ) -> None:
        if clock is None:
            # A dispute names its payment only.
            payer = self.get("payment_intent", body.get("payment_intent") or "") or {}
            customer = body.get("customer") or payer.get("customer") or ""
            owner = body if "test_clock" in body else self.get("customer", customer) or {}
            clock = owner.get("test_clock")
        event = {
            "id": self.new_id("evt", 24), "object": "event", "api_version": api_version(),
            "created": self.now_s(clock or ""), "livemode": self.livemode, "pending_webhooks": 0,
            "request": dict(self.request), "type": event_type,
            "data": {"object": body} | ({"previous_attributes": previous} if previous else {}),
        }  # fmt: skip
        self.put(event)
        for subscriber in self.subscribers:
            subscriber(event)

    def _collection(self, kind: str) -> _Collection:
        if kind not in self._collections:
            self._collections[kind] = _Collection(self.indexed.get(kind, ()))
        return self._collections[kind]

    def _set(self, kind: str, identifier: str, body: Object | None) -> None:
        collection = self._collection(kind)
        old = collection.objects.get(identifier)
        collection.put(identifier, body)
        self.journal.undo(lambda: collection.put(identifier, old))

    def _set_ids(self, count: int) -> None:
        before, self._ids = self._ids, count
        self.journal.undo(lambda: setattr(self, "_ids", before))
