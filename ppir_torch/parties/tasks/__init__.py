"""What a party's process does, one file for each role of each task: from its own files to its own report.

A role's file imports nothing of the other role's: party_2's process never loads party_1's code, nor the other way
round.
"""

from __future__ import annotations

import importlib

from ..session import Role

__all__ = ["ROLES", "load_role"]

ROLES = {
    ("images", "party_1"): "moving_images:MovingImagesRole",
    ("images", "party_2"): "fixed_images:FixedImagesRole",
    ("images", "dealer"): "dealer:DealerRole",
    ("points", "party_1"): "moving_points:MovingPointsRole",
    ("points", "party_2"): "fixed_points:FixedPointsRole",
    ("points", "dealer"): "dealer:DealerRole",
}


def load_role(task: str, name: str) -> type[Role]:
    """The class of one role; only its own file is imported.

    >>> load_role("images", "dealer").__name__
    'DealerRole'
    """
    module, _, attribute = ROLES[task, name].partition(":")
    role: type[Role] = getattr(importlib.import_module(f".{module}", __name__), attribute)
    return role
