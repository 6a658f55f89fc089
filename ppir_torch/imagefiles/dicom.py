"""DICOM folders as archives export them: one series of even, parallel slices, or a line that says what lies there.

A reader that takes the first series, closes a gap or stacks two time points gives another volume in silence. Here every
slice's own header is looked at (position, orientation, size), and slices are ordered by where they lie.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from .channels import check_pixels, one_channel
from .itk import simpleitk

__all__ = ["Series", "choose_series", "one_file"]

POSITION, ORIENTATION, DESCRIPTION = "0020|0032", "0020|0037", "0008|103e"
FRAME_TIME, IMAGE_TYPE = "0018|1063", "0008|0008"
MOST_LISTED = 8
# Tolerances: cosines of orientations; distances as shares of a voxel's.
SAME_AXES, SAME_PLACE, EVEN = 1e-3, 0.1, 0.05


@dataclass(frozen=True)
class _Slice:
    """One file's header."""

    file: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    thickness: float
    origin: NDArray[np.float64]
    axes: NDArray[np.float64]  # (3, 3), columns
    placed: bool
    frames: int
    description: str


@dataclass(frozen=True)
class Series:
    """A series whose slices make one volume.

    Attributes:
        folder: where it lies.
        slices: from the first to the last along the normal of the slices.
        distance: between two of them, mm.
    """

    folder: Path
    slices: tuple[_Slice, ...]
    distance: float

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along x, y, z."""
        first = self.slices[0]
        return (*first.size, len(self.slices) if first.frames == 1 else first.frames)

    def read(self) -> Any:
        """The volume as a SimpleITK image of one component.

        Raises:
            ImageError: a slice that is no brightness.
            RuntimeError: SimpleITK cannot read one.
        """
        sitk = simpleitk()
        read = [self._read(Path(part.file)) for part in self.slices]
        if len(read) == 1:
            return read[0]
        types = {image.GetPixelID() for image in read}
        if len(types) > 1:  # slopes differ from slice to slice
            read = [sitk.Cast(image, sitk.sitkFloat64) for image in read]
        first = self.slices[0]
        volume = sitk.JoinSeries([image[:, :, 0] if image.GetDimension() == 3 else image for image in read])
        volume.SetSpacing((*first.spacing, self.distance))
        volume.SetOrigin(first.origin.tolist())
        volume.SetDirection(first.axes.flatten().tolist())
        return volume

    def _read(self, path: Path) -> Any:
        header = _header(str(path))
        check_pixels(path, header)
        return one_channel(path, one_file(path, header))


def choose_series(folder: Path, uid: str) -> Series:
    """The one DICOM series of a folder, or the one with this UID, as a volume.

    Raises:
        ImageError: none or several series, no such UID, or slices that make no volume; one line that lists what lies
            there.
        RuntimeError: SimpleITK cannot read a slice's header.
    """
    reader = simpleitk().ImageSeriesReader
    found = {name: reader.GetGDCMSeriesFileNames(str(folder), name) for name in reader.GetGDCMSeriesIDs(str(folder))}
    if not found:
        raise ImageError(f"{folder}: the folder holds no DICOM series{_one_level_deeper(folder)}")
    if uid and uid not in found:
        raise ImageError(f"{folder}: no DICOM series {uid!r}; {_listed(found)}")
    if not uid and len(found) > 1:
        raise ImageError(f"{folder}: {len(found)} DICOM series, name one as {folder}::UID; {_listed(found)}")
    (files,) = [files for name, files in found.items() if name == (uid or name)]
    slices = [_slice(file) for file in files]
    return _volume(folder, uid or next(iter(found)), slices)


def one_file(path: Path, header: Any) -> Any:
    """The image of one DICOM file, rescaled, and brighter where it is to be shown brighter (GDCM turns MONOCHROME1).

    Raises:
        ImageError: frames that are no volume: a film, or a mosaic.
        RuntimeError: SimpleITK cannot read it.
    """
    if _tag(header, FRAME_TIME) and header.GetSize()[2:] not in ((), (1,)):
        raise ImageError(f"{path}: a film of {header.GetSize()[2]} frames, one image or volume is needed")
    if "MOSAIC" in _tag(header, IMAGE_TYPE).upper():
        raise ImageError(f"{path}: a mosaic of slices in one picture; convert it to NIfTI (dcm2niix) first")
    return header.Execute()


def _header(file: str) -> Any:
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _tag(header: Any, key: str) -> str:
    """A tag's text, trimmed and printable; empty where the file has none."""
    text = header.GetMetaData(key) if header.HasMetaDataKey(key) else ""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _slice(file: str) -> _Slice:
    header = _header(file)
    spacing, origin, size = header.GetSpacing(), header.GetOrigin(), header.GetSize()
    flat = len(size) == 2
    return _Slice(
        file=file,
        size=(int(size[0]), int(size[1])),
        spacing=(spacing[0], spacing[1]),
        thickness=1.0 if flat else spacing[2],
        origin=np.array([*origin, 0.0] if flat else origin),
        axes=np.eye(3) if flat else np.array(header.GetDirection()).reshape(3, 3),
        placed=bool(_tag(header, POSITION)) and bool(_tag(header, ORIENTATION)),
        frames=1 if flat else int(size[2]),
        description=_tag(header, DESCRIPTION),
    )


def _listed(found: dict[str, tuple[str, ...]]) -> str:
    """The series of a folder as one line names them: UID, description, number of files."""
    lines = []
    for uid, files in list(found.items())[:MOST_LISTED]:
        description = _tag(_header(files[0]), DESCRIPTION)[:60]
        lines.append(f"{uid} ({description + ', ' if description else ''}{len(files)} files)")
    more = len(found) - MOST_LISTED
    return "there are: " + "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def _one_level_deeper(folder: Path) -> str:
    reader = simpleitk().ImageSeriesReader
    inner = [each for each in sorted(folder.iterdir()) if each.is_dir()][:100]
    holding = [each for each in inner if reader.GetGDCMSeriesIDs(str(each))][:MOST_LISTED]
    return f"; these within it do: {', '.join(str(each) for each in holding)}" if holding else ""


def _volume(folder: Path, uid: str, slices: list[_Slice]) -> Series:
    """The slices in order, where they are those of one volume."""
    named = f"{folder}: series {uid}"
    first = slices[0]
    if len(slices) == 1:
        return Series(folder, (first,), first.thickness)
    if any(part.frames > 1 for part in slices):
        raise ImageError(f"{named}: {len(slices)} files of several frames each; name one file instead")
    if len(missing := [part for part in slices if not part.placed]) > 0:
        raise ImageError(f"{named}: {len(missing)} of {len(slices)} files say not where they lie in space")
    _check_alike(named, slices)
    normal = first.axes[:, 2]
    ordered = sorted(slices, key=lambda part: float(part.origin @ normal))
    places = np.array([part.origin for part in ordered])
    along = places @ normal
    distance = _even_distance(named, along)
    across = places - along[:, None] * normal
    drift = float(np.linalg.norm(across - across[0], axis=1).max())
    if drift > SAME_PLACE * min(first.spacing):
        angle = np.degrees(np.arctan2(drift, along[-1] - along[0]))
        raise ImageError(
            f"{named}: its slices are shifted sideways by up to {drift:.3g} mm (gantry tilt of {angle:.1f} degrees?); "
            "a straight stack is needed, resample it (dcm2niix does) first"
        )
    return Series(folder, tuple(ordered), distance)


def _check_alike(named: str, slices: list[_Slice]) -> None:
    first = slices[0]
    turned = [part for part in slices if np.abs(part.axes - first.axes).max() > SAME_AXES]
    if turned:
        counts = Counter(tuple(np.round(part.axes[:, 2], 2) + 0.0) for part in slices)
        seen = ", ".join(f"{n} with the normal {tuple(float(v) for v in axis)}" for axis, n in counts.most_common(4))
        raise ImageError(
            f"{named}: slices of several orientations ({seen}: a localizer?), parallel ones are needed; "
            "move the others out of the folder"
        )
    if len(sizes := {part.size for part in slices}) > 1:
        raise ImageError(f"{named}: slices of several sizes {sorted(sizes)}, equal ones are needed")
    spacings = np.array([part.spacing for part in slices])
    if float(np.ptp(spacings, axis=0).max()) > SAME_AXES * float(spacings.min()):
        raise ImageError(f"{named}: slices of several spacings, equal ones are needed")


def _even_distance(named: str, along: NDArray[np.float64]) -> float:
    """The distance between neighbouring slices; they must lie evenly, each place once."""
    count, gaps = len(along), np.diff(along)
    typical = float(np.median(gaps[gaps > 0.01])) if bool((gaps > 0.01).any()) else 0.0
    doubled = int((gaps <= max(0.01, SAME_PLACE * typical)).sum())
    if doubled:
        raise ImageError(
            f"{named}: {doubled} of {count} slices lie where another one lies (several time points, echoes or "
            "reconstructions?), one slice a place is needed; move the others out of the folder"
        )
    distance = float(along[-1] - along[0]) / (count - 1)
    even = along[0] + distance * np.arange(count)
    if float(np.abs(along - even).max()) <= EVEN * distance:
        return distance
    least = float(gaps.min())
    steps = gaps / least
    if bool((np.abs(steps - steps.round()) < SAME_PLACE).all()):
        absent = int(steps.round().sum()) - (count - 1)
        raise ImageError(
            f"{named}: {absent} slices are missing (distances from {least:.4g} to {float(gaps.max()):.4g} mm), "
            "an even stack is needed"
        )
    raise ImageError(
        f"{named}: slices at uneven distances, from {least:.4g} to {float(gaps.max()):.4g} mm, an even stack is needed"
    )
