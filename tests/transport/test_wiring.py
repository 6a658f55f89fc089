"""The links of a run: who is connected with whom, and that a transport is chosen by its settings."""

from __future__ import annotations

import pytest

from ppir_torch.errors import ConfigError, LinkError
from ppir_torch.transport import Transport, load_transport
from ppir_torch.transport.local import LocalTransport
from ppir_torch.transport.wiring import open_links, wire
from ppir_torch.wire.kinds import MessageKind


@pytest.mark.parametrize("with_dealer", [False, True])
def test_every_two_roles_have_one_link_and_one_key(with_dealer: bool) -> None:
    wiring = wire(LocalTransport(60), with_dealer)
    roles = ["party_1", "party_2", *(["dealer"] if with_dealer else [])]
    assert list(wiring.ends) == list(wiring.keys) == roles
    for role in roles:
        assert set(wiring.ends[role]) == set(wiring.keys[role]) == set(roles) - {role}
        for peer in wiring.ends[role]:
            assert wiring.keys[role][peer] == wiring.keys[peer][role]
    assert len(wiring.session) == 16
    wiring.close()


def test_what_one_role_sends_its_peer_receives() -> None:
    transport = LocalTransport(60)
    wiring = wire(transport, with_dealer=True)
    links = {
        role: open_links(transport, role, ends, wiring.keys[role], wiring.session, 60)
        for role, ends in wiring.ends.items()
    }
    for role, peers in links.items():
        for peer, link in peers.items():
            link.send(MessageKind.HELLO, f"{role} to {peer}".encode())
    for role, peers in links.items():
        for peer, link in peers.items():
            assert bytes(link.receive(MessageKind.HELLO).payload).decode() == f"{peer} to {role}"
            link.close()


def test_a_transport_is_made_from_its_settings() -> None:
    transport = load_transport({"kind": "local", "timeout_s": 12})
    assert isinstance(transport, Transport)
    assert transport.timeout_s == 12


def test_an_unknown_transport_is_one_line() -> None:
    with pytest.raises(ConfigError, match="transport: 'pigeon', one of local is needed") as caught:
        load_transport({"kind": "pigeon", "timeout_s": 60})
    assert "\n" not in str(caught.value)


def test_an_end_that_was_not_inherited_is_refused() -> None:
    with pytest.raises(LinkError, match="0 inherited sockets, one is due"):
        LocalTransport(60).join({}, ())
