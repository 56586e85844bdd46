"""What the effects of a decision do to a conversation: a function an effect, found by the effect's class.

Route, TakeToken and Delay are carried out in conversation.py: nearly every message has the first two, and the
third is part of an answer.

Rank 8.
"""

from __future__ import annotations

from collections.abc import Callable

from fastsmtp.policy.decision import (
    AddHeader,
    Asked,
    Effect,
    Fingerprinted,
    Grant,
    GrantPass,
    Held,
    ListFailed,
    Name,
    Tag,
)
from fastsmtp.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsmtp.policy.facts import Phase
    from fastsmtp.smtp.conversation import Conversation


def _grant(conversation: Conversation, effect: Grant, phase: Phase) -> None:
    client = conversation.facts.client
    client.may_relay = effect.may_relay
    client.skips_checks = effect.skips_checks
    client.certificate = effect.certificate


def _grant_pass(conversation: Conversation, effect: GrantPass, phase: Phase) -> None:
    conversation.pass_s = effect.seconds


def _add_header(conversation: Conversation, effect: AddHeader, phase: Phase) -> None:
    field = f"{effect.name}: {effect.value}\r\n".encode()
    if conversation.headers is None:
        conversation.headers = [field]
    else:
        conversation.headers.append(field)


def _tag(conversation: Conversation, effect: Tag, phase: Phase) -> None:
    conversation.facts.note(phase, effect)
    if effect.zone:
        conversation.profile.service.lists.hit(effect.zone)


def _hold(conversation: Conversation, effect: Held, phase: Phase) -> None:
    conversation.facts.note(phase, effect)


def _name(conversation: Conversation, effect: Name, phase: Phase) -> None:
    conversation.facts.client.name = effect.name


def _fingerprinted(conversation: Conversation, effect: Fingerprinted, phase: Phase) -> None:
    conversation.facts.client.fingerprint = effect.fingerprint


def _asked(conversation: Conversation, effect: Asked, phase: Phase) -> None:
    profile = conversation.profile
    settings = profile.settings
    profile.service.lists.asked(settings.rhsbl[effect.what] if effect.what else settings.lists)


def _list_failed(conversation: Conversation, effect: ListFailed, phase: Phase) -> None:
    conversation.profile.service.lists.failed(effect.zone)


CARRIED_OUT: dict[type[Effect], Callable[[Conversation, Any, Phase], None]] = {
    AddHeader: _add_header,
    Asked: _asked,
    Fingerprinted: _fingerprinted,
    Grant: _grant,
    GrantPass: _grant_pass,
    Held: _hold,
    ListFailed: _list_failed,
    Name: _name,
    Tag: _tag,
}
