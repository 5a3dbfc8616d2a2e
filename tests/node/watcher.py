"""A watcher: the verb `watch` over a connection of its own, frame by frame, as a control plane would read it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from control import ERROR, HEADER, REQUEST, Control, Refused, encode

EVENT = 5


class Watcher(Control):
    """Reads frames as they come; what events frames hold is handed out one by one, and what there is in total kept."""

    def __init__(self, path: os.PathLike, timeout_s: float = 30.0, uid: int | None = None, **args: object) -> None:
        super().__init__(path, timeout_s, uid)
        self.cursor: dict | None = None
        self.events: list[dict] = []
        self.frames: list[dict] = []
        self.begin(**args)

    def begin(self, **args: object) -> None:
        self.last_id += 1
        encoded = encode({"verb": "watch", "args": args})
        self.socket.sendall(HEADER.pack(b"HLDF", 1, REQUEST, 0, len(encoded), self.last_id) + encoded)

    def frame(self) -> dict:
        kind, _, number, body = self.read_frame()
        assert number == self.last_id
        if kind == ERROR:
            raise Refused(body)
        assert kind == EVENT, (kind, body)
        if "cursor" in body:
            self.cursor = body["cursor"]
        self.frames.append(body)
        if body["type"] == "events":
            self.events += body["events"]
        return body

    def snapshot(self) -> Snapshot:
        """All of it, up to its end."""
        pages = [self.frame()]
        assert pages[0]["type"] == "snapshot", pages[0]
        while pages[-1]["type"] != "snapshot_end":
            pages.append(self.frame())
        return Snapshot(pages)

    def until(self, wanted: Callable[[dict], bool], timeout_s: float = 20.0) -> dict:
        """The first event that is wanted, those before it included in `events`."""
        looked, end = 0, time.monotonic() + timeout_s
        while time.monotonic() < end:
            for event in self.events[looked:]:
                if wanted(event):
                    return event
            looked = len(self.events)
            self.frame()
        raise TimeoutError(f"not among {self.events}")

    def until_named(self, name: str, **fields: object) -> dict:
        return self.until(lambda event: event["event"] == name and all(event.get(k) == v for k, v in fields.items()))

    def quiet(self, for_s: float) -> bool:
        """Nothing comes."""
        self.socket.settimeout(for_s)
        with contextlib.suppress(TimeoutError):
            self.frame()
            return False
        return True


class Snapshot:
    def __init__(self, pages: list[dict]) -> None:
        self.node, self.cursor = pages[0], pages[-1]["cursor"]
        self.tenants = {each["name"]: each for page in pages for each in page.get("tenants", [])}
        self.endpoints = {
            (each["tenant"], each["endpoint"]): each for page in pages for each in page.get("endpoints", [])
        }
        self.leases = {each["id"]: each for page in pages if page["type"] == "leases" for each in page["leases"]}
