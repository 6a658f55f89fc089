"""Presets: what to choose for whom, in the words of users. Each is an experiment's YAML file without data.

    ppir run experiment=between_subjects data.moving=a.nii.gz data.fixed=b.nii.gz
    ppir register a.nii.gz b.nii.gz --preset between_subjects
    register("a.nii.gz", "b.nii.gz", preset="between_subjects")

>>> preset_values("follow_up")["transform"]
{'kind': 'rigid'}
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .registry import words

__all__ = ["PRESETS", "preset_values"]

PRESETS = {
    "same_person": "one person, one modality, organs that move",
    "follow_up": "one person at two times: rigid, so that what has changed stays to be seen",
    "between_subjects": "two people, or a person and a template",
    "across_modalities": "one person, two modalities or sequences: rigid",
}
"""Name -> for whom; the settings are in the file of that name in configs/experiment."""

_GROUPS = ("transform", "loss", "optimizer", "pyramid", "sampler", "start")


def preset_values(name: str) -> dict[str, Any]:
    """The groups of a preset, as a configuration has them; without data and backend.

    Raises:
        ConfigError: no preset of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset: {name!r}, {words(PRESETS)} is needed")
    from .compose import compose

    composed = compose([f"experiment={name}", "data.moving=-", "data.fixed=-"])
    return {group: composed[group] for group in _GROUPS if composed.get(group) is not None}
