"""A run's need of memory is estimated from headers, said, and refused in one line where there is less."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from ppir_torch.config.images import RunConfig, load_config
from ppir_torch.errors import ConfigError
from ppir_torch.grids import Grid
from ppir_torch.images import Image, save_image
from ppir_torch.runs import needs as module
from ppir_torch.runs.needs import available_memory, check_memory, needs

CT = (512, 512, 300)


def config_of(folder: Path, backend: str, **more: object) -> RunConfig:
    for name in ("moving", "fixed"):
        save_image(Image(torch.rand(1, 20, 24, 28), Grid((28, 24, 20))), folder / f"{name}.nii.gz")
    data = {name: folder / f"{name}.nii.gz" for name in ("moving", "fixed")}
    return load_config({"data": data, "backend": {"kind": backend}, **more})


@pytest.mark.parametrize("backend", ["clear", "beaver", "spdz", "bfv", "ckks"])
def test_the_need_is_said(backend: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ppir_torch"):
        check_memory(config_of(tmp_path, backend))
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory")]
    assert ("this process" if backend == "clear" else "party_2") in line


def test_too_large_a_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 1e9)
    with pytest.raises(ConfigError) as caught:
        check_memory(config_of(tmp_path, "beaver"))
    line = str(caught.value)
    assert "\n" not in line
    assert all(part in line for part in ("party_1", "party_2", "dealer", "1.0 GB are free", "13,440 points", "sampler"))
    assert caught.value.exit_code == 2


def test_fewer_points_need_less_and_lattices_more() -> None:
    whole, coarse = (needs((CT, CT), points, "beaver") for points in (78_643_200, 1_228_800))
    lattice = needs((CT, CT), 78_643_200, "beaver", deformable=True)
    assert all(coarse[role] < whole[role] < lattice[role] for role in whole)
    assert needs((CT, CT), 78_643_200, "of another package") == {}


def test_what_is_free_is_a_number_of_this_machine() -> None:
    assert 1e6 < available_memory() < 1e15


def test_files_that_are_not_there_are_refused_where_they_are_read(tmp_path: Path) -> None:
    check_memory(config_of(tmp_path, "clear").model_copy(deep=True))
    config = config_of(tmp_path, "clear")
    (tmp_path / "fixed.nii.gz").unlink()
    check_memory(config)
