"""Ctrl-C and a polite kill while training: the step is finished and saved first; a second one does not wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was stopped between two steps, and what it had is saved where it saves anything."""


class Stop:
    """asked: the signal that asked for the end, 0 as long as none has."""

    asked: int = 0

    def __bool__(self) -> bool:
        return self.asked != 0

    def check(self, done: int, steps: int) -> None:
        """Raises Interrupted where a run of so many steps was stopped before its last."""
        if self and done < steps:
            raise Interrupted(f"stopped after step {done} of {steps}")


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """A `Stop` that turns true on the first SIGINT or SIGTERM; the next one acts as it would have without this.

    In a thread other than the main one signals are none of ours, and it stays false.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, _: object) -> None:
        stop.asked = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
