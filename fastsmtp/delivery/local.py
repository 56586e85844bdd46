"""Delivery out of the queue: on this machine (Maildirs, qmail-queue, standard output), and who delivers what.

Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from fastsmtp import errors, reply
from fastsmtp.address import Address
from fastsmtp.config.dest import Dest, parse_dest
from fastsmtp.config.routes import Route, Routing
from fastsmtp.delivery import deliverer
from fastsmtp.delivery.as_user import AsUser
from fastsmtp.delivery.job import Damaged, Stored
from fastsmtp.delivery.maildir import MaildirPath, MaildirWriter, Target
from fastsmtp.delivery.outcome import Delivered, Outcome, Retry
from fastsmtp.delivery.pipe import ANSWER_S, Pipe
from fastsmtp.delivery.printer import Printer
from fastsmtp.delivery.qmail_queue import DEFAULT_HOME, QmailQueue, connection_variables
from fastsmtp.delivery.stored import StoredMessage
from fastsmtp.message import Recipient
from fastsmtp.policy.facts import Client, Facts
from fastsmtp.queue.disk import Disk

KINDS = frozenset({"discard", "maildir", "pipe", "print", "qmail-queue"})
"""The destinations that are delivered here."""


Done = Callable[[Sequence[Outcome | Damaged]], object]


class Deliveries:
    """See delivery.job.Deliverer: asks the routes of now, and hands out what they say: here, or to other servers.

    other     for what is not in KINDS
    as_user   for what is delivered as another account; None where nothing is
    routing   of the configuration in force
    """

    def __init__(
        self,
        local: LocalDeliverer,
        other: deliverer.Deliverer,
        routing: Routing,
        as_user: AsUser | None = None,
    ) -> None:
        self._as_user = as_user
        self._local = local
        self._other = other
        self._routing = routing

    def put(self, stored: Stored, recipients: Sequence[Recipient], dest: str, done: Done) -> None:
        sender, listener = stored.envelope.sender, stored.origins.listener
        if len(recipients) == 1:
            self._put(
                stored, recipients, self._routing.find(sender, recipients[0].domain, listener, dest), done
            )
            return
        routes = [self._routing.find(sender, one.domain, listener, dest) for one in recipients]
        if all(route is routes[0] for route in routes):
            self._put(stored, recipients, routes[0], done)
            return
        groups: dict[Route, list[int]] = {}
        for place, route in enumerate(routes):
            groups.setdefault(route, []).append(place)
        outcomes: list[Outcome | Damaged | None] = [None] * len(recipients)

        def settle(places: list[int], found: Sequence[Outcome | Damaged]) -> None:
            for place, outcome in zip(places, found, strict=True):
                outcomes[place] = outcome
            decided = [outcome for outcome in outcomes if outcome is not None]
            if len(decided) == len(outcomes):
                done(decided)

        for route, places in groups.items():
            self._put(stored, [recipients[place] for place in places], route, partial(settle, places))

    def _put(self, stored: Stored, recipients: Sequence[Recipient], route: Route, done: Done) -> None:
        if route.user:
            self._put_as_user(stored, recipients, route, done)
        elif route.dest.kind in KINDS:
            self._local.put(stored, recipients, route.deliver, done)
        elif route.dest.kind == "refuse":
            unnamed = Retry(
                reply.ACCOUNT_UNNAMED, "the configuration has no way for it, or says no more as whom"
            )
            done([unnamed] * len(recipients))
        else:
            self._other.put(stored, recipients, route, done)

    def wake(self) -> None:
        self._other.wake()

    def _put_as_user(self, stored: Stored, recipients: Sequence[Recipient], route: Route, done: Done) -> None:
        """Never by ourselves: a program that is to run as somebody must not run as who may read the queue."""
        if self._as_user is None or not isinstance(stored, StoredMessage):
            raise TypeError(f"nobody delivers as {route.user} here")
        self._as_user.put(stored, recipients, route, done)

    async def close(self) -> None:
        await self._local.close()
        if self._as_user is not None:
            await self._as_user.close()
        await self._other.close()


class LocalDeliverer:
    """See delivery.job.Deliverer; it has a place for each of KINDS."""

    def __init__(
        self,
        *,
        disk: Disk,
        hostname: str,
        qmail_home: str = DEFAULT_HOME,
        programs: Disk | None = None,
        answer_s: float = ANSWER_S,
    ) -> None:
        """programs: where programs run, each as long as it takes; by default `disk`, which they keep busy then.

        answer_s   how long a pipe: program may take
        """
        self._maildirs = MaildirWriter(disk, hostname)
        self._printer = Printer(disk)
        self._qmail_queue = QmailQueue(programs or disk, hostname=hostname, home=qmail_home)
        self._pipe = Pipe(programs or disk, answer_s=answer_s)
        self._hostname = hostname
        self._tasks: set[asyncio.Task[None]] = set()
        self._places: dict[str, tuple[Dest, MaildirPath | None]] = {}

    def put(self, stored: Stored, recipients: Sequence[Recipient], dest: str, done: Done) -> None:
        task = asyncio.get_running_loop().create_task(self._finish(stored, recipients, dest, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wake(self) -> None:
        """Nothing here pauses."""

    async def close(self) -> None:
        """A job that the disk has begun ends, and nobody hears of it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _finish(self, stored: Stored, recipients: Sequence[Recipient], dest: str, done: Done) -> None:
        outcomes = await self.deliver(stored, recipients, dest)
        if len(recipients) > 1 and dest.startswith("maildir:") and isinstance(outcomes[0], Retry):
            # None of them has it: each by itself, so that one bad Maildir doesn't keep the others' mail.
            outcomes = [(await self.deliver(stored, [one], dest))[0] for one in recipients]
        done(outcomes)

    async def deliver(
        self, stored: Stored, recipients: Sequence[Recipient], dest: str
    ) -> Sequence[Outcome | Damaged]:
        """One outcome a recipient, whatever happens."""
        try:
            return await self._deliver(stored, recipients, dest)
        except Exception as error:  # noqa: BLE001 - ours: it is tried again, and the reason says what it was
            return [outcome_of(error)] * len(recipients)

    async def _deliver(
        self, stored: Stored, recipients: Sequence[Recipient], dest: str
    ) -> Sequence[Outcome | Damaged]:
        place, maildir = self._place(dest)
        outcome: Outcome = Delivered(place.kind)
        done: Awaitable[None] | None = None
        sender = stored.envelope.sender
        if maildir is not None:
            targets = [
                Target(maildir.directory(one.address), maildir.root, one.address) for one in recipients
            ]
            done = self._maildirs.store(targets, sender, stored.prefix, stored)
        elif place.kind == "print":
            done = self._printer.store(list(recipients), stored.envelope, stored.prefix, stored)
        elif place.kind == "pipe":
            connection = connection_variables(facts_of(stored), self._hostname)
            outcomes: list[Outcome | Damaged] = []
            for one in recipients:
                try:
                    given = self._pipe.store(
                        place.path, sender, one.address, connection, stored.prefix, stored
                    )
                    outcomes.append(await given if inspect.isawaitable(given) else given)
                except Exception as error:  # noqa: BLE001 - as in deliver(), and those before have their mail
                    outcomes.append(outcome_of(error))
            return outcomes
        elif place.kind == "qmail-queue":
            facts = facts_of(stored)
            environment = {
                **self._qmail_queue.environment(facts),
                **connection_variables(facts, self._hostname),
            }
            found = self._qmail_queue.store(
                place.path, sender, recipients, environment, stored.prefix, stored
            )
            outcome = await found if inspect.isawaitable(found) else found
        if done is not None:
            await done
        return [outcome] * len(recipients)

    def _place(self, dest: str) -> tuple[Dest, MaildirPath | None]:
        found = self._places.get(dest)
        if found is None:
            place = parse_dest(dest)
            found = self._places[dest] = place, MaildirPath(place.path) if place.kind == "maildir" else None
        return found


def outcome_of(error: Exception) -> Retry | Damaged:
    """What becomes of a recipient when this was raised."""
    if isinstance(error, errors.QueueDamaged):
        return Damaged(str(error))
    if isinstance(error, errors.TemporaryError):
        return Retry(reply.of_error(error), str(error))
    return Retry(reply.OUR_DEFECT, repr(error))


def facts_of(stored: Stored) -> Facts:
    """A session's facts, as far as the message remembers them: for the environment of programs."""
    origins = stored.origins
    client = Client(Address(origins.address or "127.0.0.1"), origins.port, origins.origin)
    client.name = origins.name
    facts = Facts(stored.id.partition(".")[0], origins.listener, origins.local_address, client)
    facts.helo = origins.helo
    facts.is_extended = origins.is_extended
    facts.tls = origins.tls
    facts.envelope = stored.envelope
    return facts
