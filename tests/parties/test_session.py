"""One session runner for every role: what the peer is told, and what the report says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ppir_torch.parties.tasks as tasks
from ppir_torch.errors import BudgetExceeded, ConfigError, LinkError, PeerLost, PpirError
from ppir_torch.parties.session import Role, Session, run_session
from ppir_torch.parties.tasks import ROLES, load_role
from ppir_torch.wire.kinds import MessageKind
from ppir_torch.wire.link import link_pair


class Greeter(Role):
    """Says hello, then ends as it is told."""

    name, told = "party_2", "party_1"

    def __init__(self, config: str, error: PpirError | None = None) -> None:
        super().__init__(config)
        self._error = error
        self.kept: list[Path] = []

    def work(self, session: Session) -> None:
        session.channels["party_1"].send(MessageKind.HELLO)
        if self._error is not None:
            raise self._error

    def keep(self, folder: Path) -> None:
        self.kept.append(folder)


def test_a_session_is_counted_and_its_channels_are_closed(tmp_path: Path) -> None:
    mine, theirs = link_pair("party_2", "party_1", timeout=60)
    role = Greeter("{}")
    report = run_session(role, {"party_1": mine}, tmp_path)
    assert (report.role, report.error, report.exit_code, report.complete) == ("party_2", "", 0, True)
    assert report.account is not None
    assert report.account.messages == {"HELLO": 60}
    assert role.kept == [tmp_path]
    theirs.receive(MessageKind.HELLO)
    with pytest.raises(PeerLost, match="the connection was closed"):
        theirs.receive()
    theirs.close()


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("secret.mha: no such file"), 2), (PeerLost("gone"), 3), (BudgetExceeded("9"), 3)]
)
def test_a_role_that_cannot_go_on_tells_its_peer_nothing_of_its_files(
    error: PpirError, code: int, tmp_path: Path
) -> None:
    mine, theirs = link_pair("party_2", "party_1", timeout=60)
    report = run_session(Greeter("{}", error), {"party_1": mine}, tmp_path)
    assert (report.error, report.exit_code, report.complete) == (str(error), code, False)
    assert report.cap_reached is isinstance(error, BudgetExceeded)
    assert report.account is not None
    theirs.receive(MessageKind.HELLO)
    with pytest.raises(LinkError, match="stopped: party_2 cannot go on") as caught:
        theirs.receive()
    assert type(error).__name__ in str(caught.value)
    assert "secret" not in str(caught.value)
    theirs.close()


def test_a_bug_is_no_report(tmp_path: Path) -> None:
    class Broken(Greeter):
        def work(self, session: Session) -> None:  # noqa: ARG002
            raise ZeroDivisionError

    mine, theirs = link_pair("party_2", "party_1", timeout=60)
    with pytest.raises(ZeroDivisionError):
        run_session(Broken("{}"), {"party_1": mine}, tmp_path)
    mine.close()
    theirs.close()


@pytest.mark.parametrize(("task", "name"), ROLES)
def test_every_role_of_a_task_has_the_name_it_is_found_by(task: str, name: str) -> None:
    assert load_role(task, name).name == name


def _imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, wherever it does so, without what precedes the last dot."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module or "").split(".")[-1], *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[-1] for alias in node.names}
    return found


@pytest.mark.parametrize("own", ["moving", "fixed"])
def test_a_partys_modules_import_nothing_of_the_others(own: str) -> None:
    other = {"moving": "fixed", "fixed": "moving"}[own]
    folder = Path(str(tasks.__file__)).parent
    files = [path for place in (folder, folder.parent) for path in place.glob(f"{own}*.py")]
    assert len(files) == 4
    theirs = {path.stem for place in (folder, folder.parent) for path in place.glob(f"{other}*.py")}
    for path in files:
        assert _imported(path) & theirs == set(), path
