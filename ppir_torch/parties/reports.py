"""What a party's process reports of its session, as a value and as the JSON file that it leaves."""

from __future__ import annotations

from typing import Any

from ..wire.messages import SharedTransform

__all__ = ["shared_values"]


def shared_values(shared: SharedTransform | None) -> dict[str, Any] | None:
    """The transform that party_1 shared as plain values of party_2's report."""
    if shared is None or shared.coefficients is None:
        return None if shared is None else shared.to_meta()
    return shared.to_meta() | {"coefficients": shared.coefficients}
