"""The same points in every program's file: the same LPS millimetres, or one line that says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppir_torch.errors import ConfigError
from ppir_torch.points.files import load_points

POINTS = np.random.default_rng(4).uniform(-60, 60, (9, 3)).round(6)
RAS = POINTS * [-1, -1, 1]


def csv_of(points: Any, header: str) -> str:
    return header + "\n" + "".join(",".join(str(v) for v in row) + "\n" for row in points)


def fcsv(points: Any, system: str | None = "LPS", version: str = "4.11", tail: str = "") -> str:
    lines = [f"# Markups fiducial file version = {version}"]
    lines += [] if system is None else [f"# CoordinateSystem = {system}"]
    lines += ["# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"]
    rows = [f'{i},{x},{y},{z},0,0,0,1,1,1,0,"F, {i}",,{tail}' for i, (x, y, z) in enumerate(points.tolist())]
    return "\n".join([*lines, *rows]) + "\n"


def markup(points: Any, system: str | None = "LPS", **more: Any) -> dict[str, Any]:
    placed = [{"id": str(i), "label": f"F-{i}", "position": list(p)} for i, p in enumerate(points.tolist())]
    said = {} if system is None else {"coordinateSystem": system}
    return {"type": "Fiducial", **said, **more, "controlPoints": placed}


def mrk(*markups: dict[str, Any]) -> str:
    return json.dumps({"@schema": "markups-schema-v1.0.3.json#", "markups": list(markups)})


SLICERS_TABLE = [f"F-{i},{','.join(map(str, p))},1,1,1,0," for i, p in enumerate(RAS.tolist())]
TABLE_HEAD = "label,r,a,s,defined,selected,visible,locked,description"
GOOD = {
    "plain.csv": csv_of(POINTS, "x,y,z"),
    "ants.csv": csv_of(np.c_[POINTS, 0 * POINTS[:, 0]], "x,y,z,t"),
    "ants-label.csv": csv_of(np.c_[POINTS, np.arange(9)], "x,y,z,label"),
    "capitals.csv": csv_of(POINTS, "X, Y, Z"),
    "order.csv": csv_of(POINTS[:, ::-1], "z,y,x"),
    "bom.csv": "\ufeff" + csv_of(POINTS, "x,y,z").replace("\n", "\r\n"),
    "slicer-ras.csv": "\n".join([TABLE_HEAD, *SLICERS_TABLE]),
    "slicer-lps.csv": csv_of(POINTS, "l,p,s"),
    "plain.txt": "\ufeff" + csv_of(POINTS, "# mm").replace(",", " "),
    "lps.fcsv": fcsv(POINTS),
    "ras.fcsv": fcsv(RAS, "RAS"),
    "old-ras.fcsv": fcsv(RAS, "0", "4.10"),
    "old-lps.fcsv": fcsv(POINTS, "1", "4.10"),
    "placed.fcsv": fcsv(POINTS, tail="vtkMRMLScalarVolumeNode1,2,0", version="5.0"),
    "lps.mrk.json": mrk(markup(POINTS, coordinateUnits="mm")),
    "ras.mrk.json": mrk(markup(RAS, "RAS")),
    "coded.mrk.json": mrk(markup(POINTS, coordinateUnits=["mm", "UCUM", "millimeter"])),
    "empty-beside.mrk.json": mrk({"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": []}, markup(POINTS)),
    "bom.mrk.json": "\ufeff" + mrk(markup(POINTS)),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_same_points_in_every_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(GOOD[name], encoding="utf-8")
    torch.testing.assert_close(load_points(tmp_path / name), torch.from_numpy(POINTS), rtol=0, atol=1e-12)


def test_named_columns_of_ras_are_turned_too(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("\n".join([TABLE_HEAD, *SLICERS_TABLE]))
    torch.testing.assert_close(load_points(tmp_path / "p.csv", ("R", "A", "S")), torch.from_numpy(POINTS))


def with_status(status: str) -> dict[str, Any]:
    result = markup(POINTS)
    result["controlPoints"][3]["positionStatus"] = status
    return result


BAD = {
    "nothing.fcsv": (fcsv(POINTS, None), "CoordinateSystem"),
    "ijk.fcsv": (fcsv(POINTS, "2", "4.10"), "'2', LPS or RAS"),
    "columns.fcsv": (fcsv(POINTS).replace("# columns", "# Columns"), "columns"),
    "unplaced.fcsv": (fcsv(POINTS, tail="vtkMRMLScalarVolumeNode1,0,0"), "point 1 was not placed"),
    "cm.mrk.json": (mrk(markup(POINTS / 10, coordinateUnits="cm")), "coordinateUnits 'cm', 'mm' is needed"),
    "um.mrk.json": (mrk(markup(POINTS * 1000, coordinateUnits=["um", "UCUM", "micrometer"])), "coordinateUnits"),
    "inch.mrk.json": (mrk(markup(POINTS, coordinateUnits=["mm", "inches"])), "coordinateUnits"),
    "null.mrk.json": (mrk(markup(POINTS, coordinateUnits=None)), "coordinateUnits 'None'"),
    "system.mrk.json": (mrk(markup(POINTS, None)), "no coordinateSystem"),
    "ijk.mrk.json": (mrk(markup(POINTS, "IJK")), "'IJK', LPS or RAS"),
    "two.mrk.json": (mrk(markup(POINTS), markup(RAS)), "2 markups with points"),
    "none.mrk.json": (mrk(), "0 markups with points"),
    "undefined.mrk.json": (mrk(with_status("undefined")), "point 4 was not placed"),
    "missing.mrk.json": (mrk(with_status("missing")), "point 4 was not placed"),
    "preview.mrk.json": (mrk(with_status("preview")), "point 4 was not placed"),
    "ijk.csv": (csv_of(POINTS, "i,j,k"), "x, y"),
    "both.csv": (csv_of(np.c_[POINTS, RAS], "x,y,z,r,a,s"), "x, y"),
    "semicolons.csv": (csv_of(POINTS, "x,y,z").replace(",", ";"), "x, y"),
    "decimal-commas.csv": (csv_of(POINTS, "x,y,z").replace(",", ";").replace(".", ","), "x, y"),
    "tabs.csv": (csv_of(POINTS, "x,y,z").replace(",", "\t"), "x, y"),
    "unplaced.csv": ("\n".join([TABLE_HEAD, *SLICERS_TABLE[:2], "F-2,0,0,0,0,1,1,0,"]), "point 3 was not placed"),
    "index.txt": ("index\n9\n" + csv_of(POINTS, "").strip().replace(",", " "), "voxel indices"),
    "count.txt": ("point\n30\n" + csv_of(POINTS, "").strip().replace(",", " "), "must say that it has 9"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_file_leaves_open_is_not_guessed(name: str, tmp_path: Path) -> None:
    content, said = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_points(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
