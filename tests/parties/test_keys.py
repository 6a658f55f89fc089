"""The keys of the links: one for each pair of roles, known to its two processes, and left nowhere."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parties.harness import Files, started_parties, tapped_wires

from ppir_torch.parties.given import Given
from ppir_torch.runs import processes as launch
from ppir_torch.runs.images import run
from ppir_torch.transport import LinkEnd, wiring

ROLES = {"party_1": ["party_2", "dealer"], "party_2": ["party_1", "dealer"], "dealer": ["party_1", "party_2"]}


def test_every_pair_of_roles_has_a_key_of_its_own() -> None:
    made = [wiring.link_keys(ROLES) for _ in range(2)]
    for keys in made:
        assert {role: list(peers) for role, peers in keys.items()} == ROLES
        for role, peers in keys.items():
            for peer, key in peers.items():
                assert len(key) == 16
                assert keys[peer][role] == key
    assert len({key for keys in made for peers in keys.values() for key in peers.values()}) == 2 * 3


def test_a_process_is_given_its_keys_on_its_standard_input_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments and environment of a process can be read by others."""
    seen: dict[str, Any] = {"stdin": ""}

    def start(command: list[str], **options: Any) -> Any:
        seen.update(command=command, options=options)
        stdin = SimpleNamespace(write=lambda text: seen.update(stdin=seen["stdin"] + text), flush=lambda: None)
        return SimpleNamespace(stdin=stdin)

    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=start, PIPE=-1, DEVNULL=-3))
    one, two = socket.socketpair()
    key = bytes(range(100, 116))
    given = Given("images", {"threads": 1}, {"kind": "local"}, {"party_1": {"port": 1}}, {"party_1": key})
    launch.Party("party_2", given, {"party_1": LinkEnd(inherited=(one,))}, bytes(16), tmp_path / "report.json")
    two.close()
    assert json.loads(seen["stdin"]) == {
        "task": "images",
        "config": {"threads": 1},
        "transport": {"kind": "local"},
        "links": {"party_1": {"port": 1}},
        "keys": {"party_1": key.hex()},
    }
    for form in (key.hex(), repr(key)):
        assert form not in repr((seen["command"], seen["options"]))


@pytest.mark.parametrize("backend", ["bfv", "spdz"])
def test_a_run_leaves_its_keys_nowhere(
    backend: str, site_files: Callable[..., Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in a file that it writes nor on a wire."""
    made: list[bytes] = []
    link_keys = wiring.link_keys

    def recorded(peers_of: dict[str, dict[str, Any]]) -> dict[str, dict[str, bytes]]:
        keys = link_keys(peers_of)
        made.extend(key for peers in keys.values() for key in peers.values())
        return keys

    monkeypatch.setattr(wiring, "link_keys", recorded)
    with started_parties(), tapped_wires() as taps:
        run(site_files("rigid", 2).configuration(backend, "rigid"), tmp_path)
    forms = [form for key in made for form in (key, key.hex().encode())]
    assert len(forms) == {"bfv": 2, "spdz": 6}[backend] * 2
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3
    for data in [*written, *taps.streams.values()]:
        assert not any(form in data for form in forms)
