"""How two parties begin: each says who it is, and parties of another version or protocol part before anything is told.

>>> import threading
>>> from ppir_torch.wire.link import link_pair
>>> mine, theirs = link_pair("party_1", "party_2")
>>> threading.Thread(target=greet, args=(theirs, "beaver")).start()
>>> greet(mine, "beaver")
"""

from __future__ import annotations

from dataclasses import asdict

from .. import __version__
from ..errors import ConfigError, LinkError
from ..wire.channel import Channel
from ..wire.messages import Hello

__all__ = ["greet"]


def greet(channel: Channel, protocol: str) -> None:
    """Both parties: say who one is and refuse another version or protocol.

    Raises:
        ConfigError: the parties do not run the same version and protocol.
        PeerLost: the peer is gone.
    """
    mine = Hello(__version__, protocol)
    mine.send(channel)
    received = channel.receive(Hello.kind)
    try:
        theirs = asdict(Hello.decode(received.payload))
    except LinkError as error:  # a version to come may greet in other words
        raise ConfigError(
            f"{channel.peer} greets otherwise ({error}), this party {mine}; both must be the same"
        ) from None
    if theirs != asdict(mine):
        raise ConfigError(f"{channel.peer} runs {theirs}, this party {asdict(mine)}; both must be the same")
