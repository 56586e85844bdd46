"""Routes compiled: where a recipient's mail goes, from which address, and how safe the way must be.

    route = routing.find(sender, domain, listener)

Asked at RCPT, and again for each attempt out of the queue, with the configuration of that moment.  A
recipient goes where its [[accept]] says; without that, and for mail that we relay, the first [[route]]
all of whose conditions hold wins; without one it is deliver.default.

Rank 2: pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType

from fastsmtp.config.dest import Dest, parse_dest
from fastsmtp.records import dataclass, replace
from fastsmtp.typed import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastsmtp.config.settings import AcceptTable


NONE: Final[Mapping[str, Set[str]]] = MappingProxyType({})
OURS: Final = frozenset({""})
NOT_NAMED: Final[Set[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Source:
    """An address that we send from; all of it checked.

    ipv4, ipv6       "" where it has none: then nothing of that family is tried
    helo             the name in EHLO
    connections      open ones, all delivery processes together
    messages_per_s   0.0: no limit
    may_pass_on      when its address can't be bound, mail takes the route's next source; else it waits
    """

    name: str
    ipv4: str = ""
    ipv6: str = ""
    helo: str = ""
    connections: int = 20
    messages_per_s: float = 0.0
    may_pass_on: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """What one place comes to.

    deliver   the DEST as written, and as a key;  dest  what it means; kind "refuse": there is no way
    tls       off | opportunistic | required | verified
    ca        PEM file for verified; "": the system's
    sources   (source, weight) to choose from; (): whatever address the system chooses
    pass_client   how the next hop learns who the client was
    user          who writes the Maildir, or runs the program; "": the delivery processes themselves
    """

    deliver: str
    dest: Dest
    tls: str = "opportunistic"
    ca: str = ""
    sources: tuple[tuple[Source, int], ...] = ()
    pass_client: str = "none"
    user: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One [[route]] with its conditions; an empty one holds always.

    senders        keys of parse_sender: "a@example.org", "@example.org", "@.example.org", "" (the null path)
    destinations   domains and ".suffixes"
    listeners      names
    """

    route: Route
    senders: frozenset[bytes] | None = None
    destinations: frozenset[bytes] | None = None
    listeners: frozenset[str] | None = None


class RouteTable:
    """All [[route]]s, found by the most telling condition of each, in their order.

    A rule with destinations is filed under each of them, else under its senders, else with those that are
    looked at for everything: so thousands of rules cost a few look-ups and not a walk.
    """

    __slots__ = ("_by_domain", "_by_sender", "_for_all", "_rules", "default")

    def __init__(self, rules: Sequence[Rule] = (), default: Route | None = None) -> None:
        self._rules = tuple(rules)
        self._by_domain: dict[bytes, list[int]] = {}
        self._by_sender: dict[bytes, list[int]] = {}
        self._for_all: list[int] = []
        self.default = default or Route("refuse", Dest("refuse"))
        for number, rule in enumerate(self._rules):
            if rule.destinations is not None:
                for key in rule.destinations:
                    self._by_domain.setdefault(key, []).append(number)
            elif rule.senders is not None:
                for key in rule.senders:
                    self._by_sender.setdefault(key, []).append(number)
            else:
                self._for_all.append(number)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def all(self) -> list[Route]:
        """The routes of all rules, in their order."""
        return [rule.route for rule in self._rules]

    def find(self, sender: bytes, domain: bytes, listener: str) -> Route:
        """The route of one recipient.

        sender   reverse path without brackets, in any case; b"" is the null path
        domain   the recipient's, lower-case
        listener name of the [[listen]]
        """
        if not self._rules:
            return self.default
        sender = sender.lower()
        found = list(self._for_all)
        senders: tuple[bytes, ...] | None = None
        if self._by_domain:
            for key in domain_keys(domain):
                found += self._by_domain.get(key, ())
        if self._by_sender:
            senders = sender_keys(sender)
            for key in senders:
                found += self._by_sender.get(key, ())
        for number in sorted(set(found)):
            rule = self._rules[number]
            if rule.listeners is not None and listener not in rule.listeners:
                continue
            if rule.senders is not None:
                senders = senders or sender_keys(sender)
                if rule.senders.isdisjoint(senders):
                    continue
            return rule.route
        return self.default


class Routing:
    """Where a recipient's mail goes, all said and done: [[accept]], [[route]], deliver.default."""

    __slots__ = ("_named", "_own", "_told", "accept", "routes")

    def __init__(
        self,
        accept: AcceptTable,
        routes: RouteTable,
        named: Mapping[str, Set[str]] = NONE,
    ) -> None:
        """named: for each DEST that a table names, the accounts that they deliver as there; "" for our own."""
        self.accept = accept
        self.routes = routes
        self._named = named
        self._own: dict[tuple[str, str, str], Route] = {}
        self._told: dict[tuple[Route, str], Route] = {}

    def find(self, sender: bytes, domain: bytes, listener: str, deliver: str = "") -> Route:
        """The route of a recipient, by this configuration.

        deliver   where the configuration at RCPT sent it: holds when this one has no way any more, unless the
                  table that is gone may have said another account than those do that name this place: one
                  account's mail is no other's.  A program that nobody names may have been anybody's.
        """
        accept = self.accept.find(domain)
        if accept is not None and accept.deliver:
            return self.own(accept.deliver, accept.pass_client, accept.user)
        route = self.routes.find(sender, domain, listener)
        if route.dest.kind == "refuse" and deliver:
            accounts = self._named.get(deliver, NOT_NAMED)
            is_program = deliver.startswith("pipe:")
            if len(accounts) > 1 or (is_program and accounts != OURS):
                return route
            return self.own(deliver, user="".join(accounts))
        if accept is not None and accept.pass_client != route.pass_client:
            key = (route, accept.pass_client)
            if key not in self._told:
                self._told[key] = replace(route, pass_client=accept.pass_client)
            return self._told[key]
        return route

    def own(self, deliver: str, pass_client: str = "none", user: str = "") -> Route:
        """The route of a DEST that names its place itself."""
        route = self._own.get((deliver, pass_client, user))
        if route is None:
            route = Route(deliver, parse_dest(deliver), pass_client=pass_client, user=user)
            self._own[deliver, pass_client, user] = route
        return route


def domain_keys(domain: bytes) -> tuple[bytes, ...]:
    """What may stand for a domain: "a.example.org", ".example.org", ".org"."""
    keys = [domain]
    at = domain.find(b".")
    while at != -1:
        keys.append(domain[at:])
        at = domain.find(b".", at + 1)
    return tuple(keys)


def sender_keys(sender: bytes) -> tuple[bytes, ...]:
    """What may stand for a lower-case sender: "a@b.example", "@b.example", "@.example"; b"" for the null path."""
    if not sender:
        return (b"",)
    domain = sender.rpartition(b"@")[2]
    return (sender, *(b"@" + key for key in domain_keys(domain)))
