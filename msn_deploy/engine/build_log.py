"""What does TensorRT say while it builds, and what of it does a user need to know?

Messages are collected through an ILogger subclass. Not through an error recorder: one written in Python crashes the
builder of TensorRT-RTX 1.7.1 when the network dies before it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msn_deploy.core.errors import shorten
from msn_deploy.core.progress import Progress

_ERROR, _WARNING = 1, 2  # ILogger.Severity: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose; all releases
_LOGGERS: dict[int, tuple[Any, Messages]] = {}


class Messages:
    """What one build said, in order, and the first exception that hit a callback.

    An exception must not travel through C++ frames, so callbacks keep it here and the caller raises it afterwards.
    """

    def __init__(self) -> None:
        self.texts: list[tuple[int, str]] = []
        self.held: BaseException | None = None

    def start(self) -> None:
        """Forget the build before."""
        self.texts = []
        self.held = None

    def hold(self, cause: BaseException) -> None:
        """Keep the first exception of a callback."""
        self.held = self.held or cause

    def raise_held(self) -> None:
        """Raise what a callback met, if anything."""
        if self.held is not None:
            held, self.held = self.held, None
            raise held

    def errors(self) -> list[str]:
        """Error messages in short form, without repeats."""
        return list(dict.fromkeys(shorten(text) for severity, text in self.texts if severity <= _ERROR))

    def warnings(self) -> list[str]:
        """Warnings in short form, without repeats."""
        return list(dict.fromkeys(shorten(text) for severity, text in self.texts if severity == _WARNING))


@contextmanager
def ctrl_c_held(messages: Messages) -> Iterator[None]:
    """Within this block Ctrl-C is kept like an exception of a callback; its progress monitor then ends the build.

    Python would raise it in whatever callback runs, at points that no `try` covers, and abort the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread only
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: messages.hold(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def logger_of(trt: Any) -> tuple[Any, Messages]:
    """Return the logger of a TensorRT module and what it collects.

    There is one per module for the life of the process: TensorRT keeps a bare pointer to the first one it is given.
    """
    key = id(trt.ILogger)
    if key not in _LOGGERS:
        collected = Messages()

        class CollectingLogger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # pybind11 needs the base called by name

            def log(self, severity: Any, message: str) -> None:
                try:
                    collected.texts.append((int(severity), message))
                except BaseException as cause:  # into C++ it would abort the process
                    collected.hold(cause)

        _LOGGERS[key] = CollectingLogger(), collected
    return _LOGGERS[key]


def monitor_of(trt: Any, messages: Messages, progress: Progress) -> Any:
    """Return an IProgressMonitor that reports the build as a share of 1, or None where TensorRT has none (8.x)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None
    share = PhaseShare()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def _report(self, phase: str) -> None:
            try:
                progress(share.value(), 1.0, phase)
            except BaseException as cause:  # into C++ it would abort the process
                messages.hold(cause)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            share.start(phase_name, parent_phase, num_steps)
            self._report(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            share.step(phase_name, step)
            self._report(phase_name)
            return messages.held is None  # False cancels the build

        def phase_finish(self, phase_name: str) -> None:
            share.finish(phase_name)

    return Monitor()


class PhaseShare:
    """How much of a tree of phases is done, 0 to 1: a running phase fills the current step of its parent."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of N steps below a running one."""
        self._phases[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, step: int) -> None:
        """Record that step `step`, counted from 0, is complete."""
        if name in self._phases:
            parent, steps, _ = self._phases[name]
            self._phases[name] = (parent, steps, min(step + 1, steps))

    def finish(self, name: str) -> None:
        """End a phase; the step that it filled is reported by its parent."""
        self._phases.pop(name, None)

    def value(self) -> float:
        """Return the share done; it never falls, though TensorRT may add phases late."""
        self._best = max(self._best, self._below(None))
        return min(self._best, 1.0)

    def _below(self, parent: str | None) -> float:
        shares = [
            (done + (self._below(name) if done < steps else 0.0)) / steps
            for name, (above, steps, done) in self._phases.items()
            if above == parent and name != parent
        ]
        return max(shares, default=0.0)
