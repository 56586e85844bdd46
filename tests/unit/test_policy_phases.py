"""What phases say to each other: refusals that wait, scores that add up, rules that only observe; and that all
of it is the same when it is judged again."""

from __future__ import annotations

from typing import Any

import pytest

from fastsmtp import _body, reply
from fastsmtp._dns import Answer, Question
from fastsmtp._parser import Path, parse_path
from fastsmtp.address import Address
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy import header
from fastsmtp.policy.decision import Decision, Grant, Held, Name, Tag, Verdict, defer, drop, passed, reject
from fastsmtp.policy.facts import Client, Facts, Phase
from fastsmtp.policy.rules import stages_of
from fastsmtp.policy.runner import MAX_ROUNDS, Plan, Round
from fastsmtp.policy.stage import Failed, Stage
from tests.fakes.zone import MX, PTR, A, Zone, answer, decision_of

DENIED = reject(reply.DENIED, Tag("rule", "hit", 3))
BUSY = defer(reply.OVERLOADED)
ORDER = (Phase.CLIENT, Phase.CONNECT, Phase.HELO, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.END)


def settings(**policy: Any) -> Settings:
    accept = [{"domain": ["example.org"], "deliver": "discard"}]
    return load(values={"hostname": "mx.example", "accept": accept, "policy": policy}).settings[0]


def path(text: bytes) -> Path:
    parsed = parse_path(text, is_reverse=True)
    assert not isinstance(parsed, int)
    return parsed[0]


class Session:
    """A session's facts through the phases, with the effects that the connection would carry out."""

    def __init__(
        self, under: Settings, zone: Zone | None = None, own: Any = (), address: str = "192.0.2.1"
    ) -> None:
        self.reports: list[tuple[str, str]] = []
        self.verdicts: list[tuple[str, Verdict]] = []
        self.plan = Plan(stages_of(under, own), under, report=self)
        self.zone = zone or {}
        self.facts = Facts("ID", "mx", "198.51.100.25", Client(Address(address)))
        self.said: list[tuple[str, int, str]] = []
        self.recorded: list[tuple[Question, Answer]] = []

    def defect(self, facts: Facts, stage: Stage, error: Exception) -> None:
        self.reports.append(("defect", stage.name))

    def observed(self, facts: Facts, stage: Stage, decision: Decision) -> None:
        self.reports.append(("observe", stage.name))

    def judged(self, name: str, verdict: Verdict) -> None:
        self.verdicts.append((name, verdict))

    def phase(self, phase: Phase) -> Decision:
        if phase in (Phase.HELO, Phase.MAIL):
            self.facts.forget(phase)
        decision = decision_of(self.plan, phase, self.facts, self.zone)
        for effect in decision.effects:
            if isinstance(effect, Tag | Held):
                self.facts.note(phase, effect)
            elif isinstance(effect, Grant):
                self.facts.client.skips_checks = effect.skips_checks
            elif isinstance(effect, Name):
                self.facts.client.name = effect.name
        self.said.append((phase.name, 0 if decision.reply is None else decision.reply.code, decision.stage))
        return decision

    def run(
        self,
        *,
        helo: bytes = b"a.example",
        sender: bytes = b"<a@a.example>",
        rcpt: bytes = b"<b@example.org>",
    ) -> Decision:
        """Up to the first phase that refuses, else to the end of a message."""
        facts = self.facts
        for phase in ORDER:
            if phase is Phase.HELO:
                facts.helo = helo
            elif phase is Phase.MAIL:
                facts.sender = path(sender)
                facts.envelope = Envelope(facts.sender.address, facts.sender.domain)
            elif phase is Phase.RCPT:
                facts.recipient = path(rcpt)
            elif phase is Phase.END:
                facts.envelope.recipients.append(Recipient(facts.recipient.address, b"example.org"))  # type: ignore[union-attr]
                facts.header = _body.HeaderScanner().finish()
            decision = self.phase(phase)
            if decision.reply is not None:
                return decision
        return decision


def at(phase: Phase, opinion: Decision, **how: Any) -> Stage:
    return Stage(f"own_{phase.name.lower()}", phase, lambda facts, settings: opinion, **how)


PLAIN = {"mfcheck": {"mode": "off"}, "helo": {"mode": "off"}, "reverse_dns": {"mode": "off"}}


@pytest.mark.parametrize(
    ("found_at", "reject_at", "spoken_at"),
    [
        (Phase.CONNECT, "connect", "CONNECT"),
        (Phase.CONNECT, "helo", "HELO"),
        (Phase.CONNECT, "mail", "MAIL"),
        (Phase.CONNECT, "rcpt", "RCPT"),
        (Phase.HELO, "connect", "HELO"),
        (Phase.HELO, "helo", "HELO"),
        (Phase.HELO, "mail", "MAIL"),
        (Phase.HELO, "rcpt", "RCPT"),
        (Phase.MAIL, "helo", "MAIL"),
        (Phase.MAIL, "rcpt", "RCPT"),
        (Phase.RCPT, "connect", "RCPT"),
        (Phase.RCPT, "rcpt", "RCPT"),
        (Phase.DATA, "rcpt", "DATA"),
        (Phase.END, "rcpt", "END"),
    ],
)
def test_when_a_refusal_is_spoken(found_at: Phase, reject_at: str, spoken_at: str) -> None:
    session = Session(settings(reject_at=reject_at, **PLAIN), own=[at(found_at, DENIED)])
    session.run()
    assert session.said[-1] == (spoken_at, 550, f"own_{found_at.name.lower()}")


def test_of_refusals_that_wait_the_highest_is_spoken_and_the_earliest_among_equals() -> None:
    own = [at(Phase.CONNECT, BUSY), at(Phase.HELO, DENIED), at(Phase.MAIL, reject(reply.NO_RELAYING))]
    session = Session(settings(**PLAIN), own=own)
    assert session.run().reply == reply.DENIED
    assert session.said[-1] == ("RCPT", 550, "own_helo")


def test_what_drops_is_never_held_and_what_defers_is() -> None:
    assert (
        Session(settings(**PLAIN), own=[at(Phase.CONNECT, drop(reply.OVERLOADED))]).run().stage
        == "own_connect"
    )
    session = Session(settings(**PLAIN), own=[at(Phase.CONNECT, BUSY)])
    assert session.run().verdict is Verdict.DEFER
    assert session.said[-1][0] == "RCPT"


def test_a_defect_is_held_as_any_other_refusal() -> None:
    def broken(facts: Facts, settings: Settings) -> None:
        raise KeyError("a defect")

    session = Session(settings(**PLAIN), own=[Stage("broken", Phase.HELO, broken)])
    assert session.run().reply == reply.OUR_DEFECT
    assert session.said[-1] == ("RCPT", 451, "broken")
    assert session.reports == [("defect", "broken")]


@pytest.mark.parametrize(
    ("rcpt", "deny", "code"),
    [
        (b"<b@example.org>", [], 550),
        (b"<postmaster@example.org>", [], 0),
        (b"<PostMaster@example.org>", [], 0),
        (b"<postmaster@elsewhere.example>", [], 550),
        # Denied by the operator himself: that is as narrow as RFC 5321 section 4.5.1 wants it.
        (b"<postmaster@example.org>", ["192.0.2.1"], 550),
    ],
)
def test_postmaster_is_spared(rcpt: bytes, deny: list[str], code: int) -> None:
    own = [at(phase, DENIED) for phase in (Phase.CONNECT, Phase.HELO, Phase.MAIL)]
    session = Session(settings(clients={"deny": deny}, **PLAIN), own=own)
    session.run(rcpt=rcpt)
    assert session.said[-1][1] == code


def test_a_new_helo_takes_back_what_the_old_one_brought() -> None:
    def rule(facts: Facts, settings: Settings) -> Decision | None:
        return DENIED if facts.helo == b"bad" else None

    session = Session(settings(**PLAIN), own=[Stage("rule", Phase.HELO, rule)])
    session.facts.helo = b"bad"
    session.phase(Phase.HELO)
    assert (session.facts.score, len(session.facts.held), session.facts.tags) == (3, 1, {"rule": "hit"})
    session.facts.helo = b"good"
    session.phase(Phase.HELO)
    assert (session.facts.score, session.facts.held, session.facts.tags) == (0, (), {})


@pytest.mark.parametrize(
    ("scores", "code", "stage"),
    [
        ((3, 4, 0), 0, ""), ((3, 4, 1), 550, "score"), ((20, 0, -13), 0, ""), ((8, 0, 0), 550, "score"),
    ],
)  # fmt: skip
def test_scores_add_up_over_the_phases(scores: tuple[int, ...], code: int, stage: str) -> None:
    phases = (Phase.CONNECT, Phase.HELO, Phase.MAIL)
    own = [
        at(phase, passed(Tag("t", phase.name, score))) for phase, score in zip(phases, scores, strict=True)
    ]
    session = Session(settings(**PLAIN), own=own)
    session.run()
    assert session.said[-1][1:] == (code, stage)


def test_later_stages_read_tags_and_scores() -> None:
    def rule(facts: Facts, settings: Settings) -> Decision | None:
        return DENIED if facts.tags.get("first") == "seen" and facts.score == 2 else None

    own = [at(Phase.CONNECT, passed(Tag("first", "seen", 2))), Stage("reader", Phase.HELO, rule)]
    session = Session(settings(**PLAIN), own=own)
    session.run()
    assert session.said[-1] == ("RCPT", 550, "reader")


@pytest.mark.parametrize("how", ["own mode", "for all"])
def test_an_observed_rule_is_told_and_does_nothing(how: str) -> None:
    effects = (Tag("seen", "yes", 50), Grant(may_relay=True, skips_checks=True))
    under = settings(**PLAIN) if how == "own mode" else settings(mode="observe", **PLAIN)
    mode = "observe" if how == "own mode" else "enforce"
    own = [
        at(Phase.CONNECT, reject(reply.DENIED, *effects), mode=mode),
        at(Phase.HELO, passed(*effects), mode=mode),
    ]
    session = Session(under, own=own)
    assert session.run().reply is None
    facts = session.facts
    assert (facts.score, facts.observed_score, facts.held, facts.client.skips_checks) == (0, 100, (), False)
    assert facts.tags == {"seen": "yes,yes"}
    # Said once for the rule, and once for what the scores would have done.
    assert session.reports == [("observe", "own_connect"), ("observe", "score"), ("observe", "score")]


def test_an_observed_list_does_not_refuse_and_is_told() -> None:
    lists = [{"zone": "zen.example", "mode": "observe"}]
    session = Session(settings(dnsbl=lists, **PLAIN), {("1.2.0.192.zen.example", A): ["127.0.0.2"]})
    assert session.run().reply is None
    assert session.reports == [("observe", "score")]
    assert header.write("X-P", session.facts) == b"X-P: score=0 dnsbl=zen.example(127.0.0.2)\r\n"


def test_soft_reject_softens_what_is_held() -> None:
    session = Session(settings(soft_reject=True, **PLAIN), own=[at(Phase.CONNECT, DENIED)])
    session.run()
    assert session.said[-1] == ("RCPT", 450, "own_connect")


def test_no_question_is_asked_once_a_limit_refuses() -> None:
    asked = []

    def asks(facts: Facts, settings: Settings) -> Any:
        asked.append((yield (Question(b"example.org", A),)))

    under = settings(**PLAIN)
    limit = Stage("limit", Phase.CONNECT, lambda facts, settings: drop(reply.OVERLOADED), is_check=False)
    plan = Plan([Stage("asks", Phase.CONNECT, asks), limit], under)
    decision = plan.run(Phase.CONNECT, Facts("ID", "mx", "", Client(Address("192.0.2.1"))))
    assert isinstance(decision, Decision)
    assert (decision.reply, asked) == (reply.OVERLOADED, [])


def test_a_stage_that_asks_for_ever_is_stopped() -> None:
    def asks(facts: Facts, settings: Settings) -> Any:
        while True:
            yield (Question(b"example.org", A),)

    session = Session(settings(reject_at="connect", **PLAIN), own=[Stage("asks", Phase.HELO, asks)])
    assert session.run().reply == reply.OUR_DEFECT
    assert MAX_ROUNDS < 20


def test_effects_can_be_taken_while_others_are_still_asked() -> None:
    def asks(facts: Facts, settings: Settings) -> Any:
        (found,) = yield (Question(b"example.org", A),)
        return passed(Tag("late", found.reason))

    stages = [at(Phase.CONNECT, passed(Tag("soon"))), Stage("asks", Phase.CONNECT, asks)]
    waiting = Plan(stages, settings(**PLAIN)).run(
        Phase.CONNECT, Facts("ID", "mx", "", Client(Address("192.0.2.1")))
    )
    assert isinstance(waiting, Round)
    assert [effect.name for effect in waiting.take_effects()] == ["soon"]  # type: ignore[attr-defined]
    decision = waiting.resume({question: Failed("deadline") for question in waiting.questions})
    assert isinstance(decision, Decision)
    assert [effect.name for effect in decision.effects] == ["late"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("deny", "code"), [([], 0), (["192.0.2.1"], 550)])
def test_who_is_on_a_good_list_skips_the_rest_but_not_the_operator_s_word(deny: list[str], code: int) -> None:
    under = settings(
        dnswl=[{"zone": "wl.example", "skip": True}], clients={"deny": deny}, helo={"mode": "enforce"}
    )
    zone: Zone = {("1.2.0.192.wl.example", A): ["127.0.0.2"]}
    session = Session(under, zone, own=[at(Phase.MAIL, DENIED)])
    session.run(helo=b"bare")
    assert session.said[-1][1] == code


LISTED: Zone = {
    ("1.2.0.192.zen.example", A): ["127.0.0.2"],
    ("1.2.0.192.in-addr.arpa", PTR): ["mail.example.net"],
    ("mail.example.net", A): ["192.0.2.1"],
    ("a.example", MX): [(1, "mail.example.net")],
    ("a.example", A): ["192.0.2.3"],
}
EVERYTHING: dict[str, Any] = {
    "dnsbl": [{"zone": "zen.example", "score": 5}, {"zone": "b.example", "score": 5}],
    "dnswl": [{"zone": "wl.example"}],
    "rhsbl": [{"zone": "dbl.example"}],
    "helo": {"mode": "enforce"},
    "reverse_dns": {"mode": "enforce"},
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {("1.2.0.192.b.example", A): ["127.0.0.3"]},
        {("a.example", MX): [(0, "")]},
        {("a.example.dbl.example", A): ["127.0.0.2"]},
        {("mail.example.net", A): ["192.0.2.99"]},
    ],
)
def test_a_session_judged_again_from_its_record_gives_the_same_to_the_byte(changed: dict[Any, Any]) -> None:
    """Facts and answers are all that a decision comes from: nothing else may differ, or be asked."""
    zone = {**LISTED, **changed}
    first = Session(settings(**EVERYTHING), zone)
    first.run()

    def transcript(session: Session) -> bytes:
        lines = [f"{phase} {code} {stage}" for phase, code, stage in session.said]
        lines += [f"{name}={value}" for name, value in session.facts.tags.items()]
        return "\n".join(
            [*lines, str(session.facts.score), str(session.reports), session.facts.client.name]
        ).encode()

    for _ in range(3):
        again = Session(settings(**EVERYTHING), zone)
        again.run()
        assert transcript(again) == transcript(first)


def test_the_same_facts_and_answers_give_the_same_replies_whatever_the_order_of_the_answers() -> None:
    zone = {**LISTED, ("1.2.0.192.b.example", A): ["127.0.0.3"]}
    replies = set()
    for is_reversed in (False, True):
        session = Session(settings(reject_at="connect", **EVERYTHING), zone)
        waiting = session.plan.run(Phase.CONNECT, session.facts)
        while isinstance(waiting, Round):
            answers = [(question, answer(zone, question)) for question in waiting.questions]  # type: ignore[arg-type]
            waiting = waiting.resume(dict(reversed(answers) if is_reversed else answers))
        assert waiting.reply is not None
        replies.add((waiting.reply.head, repr(waiting), len(waiting.effects)))
    assert len(replies) == 1


def test_stages_that_need_answers_are_left_out_where_nobody_answers() -> None:
    names = {stage.name for stage in stages_of(settings(**EVERYTHING), has_answers=False)}
    assert names.isdisjoint({"dnsbl", "rhsbl", "mfcheck", "reverse_dns"})
    assert "helo" in names


# --- the field for the next hop ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], b""),
        ([Tag("dnsbl", "zen.example(127.0.0.10)", 5), Tag("helo", "unresolvable")],
         b"X-P: score=5 dnsbl=zen.example(127.0.0.10) helo=unresolvable\r\n"),
        ([Tag("own")], b"X-P: score=0 own\r\n"),
        ([Tag("own", "a\r\nEvil: b\x00 ü")], b"X-P: score=0 own=a__Evil:_b___\r\n"),
        ([Tag(f"t{n}", "x" * 30) for n in range(4)],
         b"X-P: score=0 t0=#\r\n\tt1=# t2=#\r\n\tt3=#\r\n".replace(b"#", b"x" * 30)),
    ],
)  # fmt: skip
def test_the_field(tags: list[Tag], expected: bytes) -> None:
    facts = Facts("ID", "mx", "", Client(Address("192.0.2.1")))
    for tag in tags:
        facts.note(Phase.CONNECT, tag)
    assert header.write("X-P", facts) == expected
