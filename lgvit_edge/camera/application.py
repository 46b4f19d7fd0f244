"""The application: runs a plan until it is asked to stop, and again when it is asked to reload."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from lgvit_edge._support.terminal import console, say
from lgvit_edge.camera.check import place_faults
from lgvit_edge.camera.logs import EventLog, is_journal
from lgvit_edge.camera.memory import giving_back
from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.page.server import Page
from lgvit_edge.camera.pipeline import Camera
from lgvit_edge.camera.plan import Plan, is_this_machine
from lgvit_edge.camera.shot import Event
from lgvit_edge.camera.signals import Asked, asked_to_stop
from lgvit_edge.camera.sinks.base import SinkCounts
from lgvit_edge.camera.sinks.metrics import prometheus
from lgvit_edge.camera.sinks.screen import Screen
from lgvit_edge.camera.systemd import Notifier
from lgvit_edge.errors import LGViTEdgeError, MissingDependency, SourceError, UsageError
from lgvit_edge.runtime.session import Session

# Seconds for systemd's watchdog: in which frames must have been looked for, and a bundle opened.
_ALIVE, _OPENING = 20.0, 300.0


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        monitor: counts of all cameras.
        sinks: counts of all sinks, by name.
        interrupted: whether Ctrl-C ended it.
        failure: why cameras ended before their ends; None where none did.
    """

    monitor: Monitor
    sinks: dict[str, SinkCounts]
    interrupted: bool
    failure: LGViTEdgeError | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain types."""
        return {
            **self.monitor.snapshot(),
            "sinks": {name: vars(counts) for name, counts in self.sinks.items()},
            "failure": None if self.failure is None else str(self.failure),
        }


class Application:
    """Runs plans, one after the other, with page, terminal, log and systemd around them."""

    def __init__(
        self,
        load: Callable[[], Plan] | None,
        *,
        screen: Console = console,
        token: str | None = None,
    ) -> None:
        """Make the application.

        Args:
            load: reads options and camera.toml again, for a reload; None where there is no file to
                read again: then SIGHUP, as of a closed terminal, ends the run.
            screen: what people read.
            token: what viewers must give, where they need a token.
        """
        self._load, self._screen, self._token = load, screen, token
        self._notifier = Notifier()
        self._camera: Camera | None = None
        self._opening = time.monotonic()

    def run(self, plan: Plan) -> Outcome:
        """Run a plan until all sources are over or a signal ends it; return what it did.

        Raises:
            LGViTEdgeError: the first plan cannot run. A later one that cannot, after a reload, is
                told, and the one before runs on.
        """
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(asked_to_stop(reloads=self._load is not None))
            # Where there is no screen, events go to standard error.
            log = EventLog(plan.log, stderr=_quiet(plan))
            self._log = stack.enter_context(contextlib.closing(log))
            stack.enter_context(self._notifier.watching(self._is_alive))
            stack.enter_context(giving_back())
            session = plan.open()
            try:
                while True:
                    outcome = self._run_once(plan, session, asked)
                    if asked.stop or not asked.reload:
                        return outcome
                    asked.reload = False
                    plan, session = self._reloaded(plan, session)
            finally:
                self._notifier.stopping()
                session.close()

    def _is_alive(self) -> bool:
        """Return whether frames are looked for; opening a bundle may take its time."""
        camera = self._camera
        since = self._opening if camera is None else camera.turned
        return time.monotonic() - since < (_OPENING if camera is None else _ALIVE)

    def _reloaded(self, plan: Plan, session: Session) -> tuple[Plan, Session]:
        """Return the new plan and its session; those there are, where the new one cannot run."""
        assert self._load is not None
        self._notifier.reloading()
        try:
            new = self._load()
            # What can fail comes before the old session is closed.
            opened = new.open()
            try:
                if faults := place_faults(new, opened):
                    raise UsageError("; ".join(faults))
            except BaseException:
                opened.close()
                raise
        except (LGViTEdgeError, OSError) as error:
            text = f"the new settings cannot be used, the old ones stay: {error}"
            self._log.event(Event(time.time(), "", text, "error"))
            return plan, session
        session.close()
        self._log.event(Event(time.time(), "", "reads its settings again"))
        return new, opened

    def _run_once(self, plan: Plan, session: Session, asked: Asked) -> Outcome:
        failure: LGViTEdgeError | None = None
        camera = Camera(plan.cameras, session, sinks=plan.sinks(session), on_event=self._log.event)
        with contextlib.ExitStack() as stack:
            stack.callback(self._opens)
            self._camera = camera
            asked.wake = camera.stop
            if asked.stop or asked.reload:
                camera.stop()
            if plan.page is not None:
                stack.enter_context(self._page(plan, session, camera))
            if not _quiet(plan):
                screen = stack.enter_context(
                    contextlib.closing(Screen(camera.monitor, to=self._screen))
                )
                screen.start()
            self._notifier.ready(f"{len(plan.cameras)} cameras")
            try:
                camera.run()
            except (SourceError, MissingDependency) as error:  # what was answered is told first
                failure = error
            asked.wake = None
        return Outcome(camera.monitor, camera.sinks(), asked.interrupted, failure)

    def _opens(self) -> None:
        """Note that no camera runs until the next one does."""
        self._camera, self._opening = None, time.monotonic()

    @contextlib.contextmanager
    def _page(self, plan: Plan, session: Session, camera: Camera) -> Iterator[None]:
        assert plan.page is not None
        host, port = plan.page
        page = Page(
            camera.monitor,
            session,
            host=host,
            port=port,
            token=None if is_this_machine(host) and not plan.page_names else self._token,
            names=plan.page_names,
            metrics=lambda: prometheus(camera.monitor),
        )
        page.open()
        try:
            page.start()
            say(f"live page: {page.link}", self._screen)
            yield
        finally:
            page.stop()


def _quiet(plan: Plan) -> bool:
    """Return whether nobody looks at a table: the journal wants events, with their priority."""
    return plan.quiet or is_journal(sys.stderr)
