"""One brightness a voxel: colour is averaged, a vector, a tensor or a complex number is refused.

Which of them several components are, their file says: a picture's format has colours, NIfTI has a data type for them,
NRRD a kind of axis. What is not known to be colour is none: the mean over a vector's components means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError
from .itk import simpleitk
from .nifti import read_header

__all__ = ["check_pixels", "one_channel"]

PICTURES = ("PNGImageIO", "JPEGImageIO", "BMPImageIO", "TIFFImageIO", "LSMImageIO", "GDCMImageIO", "JPEG2000ImageIO")
HINT = "one brightness a voxel is needed; save one of them in a file of its own"


def check_pixels(path: Path, header: Any) -> None:
    """Refuse, from a file's header alone, voxels that are no brightness and no colour.

    Args:
        path: the file, or one slice of a series.
        header: a SimpleITK ImageFileReader that has read the file's information.

    Raises:
        ImageError: one line with the file.
    """
    sitk = simpleitk()
    if header.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise ImageError(f"{path}: complex voxels, a real brightness is needed; save their magnitude")
    components = header.GetNumberOfComponents()
    if components > 1 and not _is_colour(path, header, components):
        kind = {2: "", 3: " (a vector)", 6: " (a tensor)"}.get(components, "")
        raise ImageError(f"{path}: {components} components a voxel{kind}, {HINT}")


def _is_colour(path: Path, header: Any, components: int) -> bool:
    sitk = simpleitk()
    io = header.GetImageIOFromFileName(str(path))
    bytes_ = header.GetPixelID() == sitk.sitkVectorUInt8
    if io in PICTURES:
        return components <= 4 and (bytes_ or header.GetPixelID() == sitk.sitkVectorUInt16)
    if components not in (3, 4):
        return False
    if io == "NiftiImageIO":
        nifti = read_header(path)
        return nifti is not None and nifti.colour
    kinds = [header.GetMetaData(key) for key in header.GetMetaDataKeys() if key.startswith("NRRD_kinds")]
    return bytes_ and (any("color" in kind for kind in kinds) or not kinds)


def one_channel(path: Path, loaded: Any) -> Any:
    """A SimpleITK image of one component: colour averaged, in float64; one that has one component as it is.

    Raises:
        ImageError: transparent pixels, whose colour means nothing.
    """
    components = loaded.GetNumberOfComponentsPerPixel()
    if components == 1:
        return loaded
    sitk = simpleitk()
    values = sitk.GetArrayViewFromImage(loaded)
    if components in (2, 4):
        alpha = values[..., -1]
        low, high = int(alpha.min()), int(alpha.max())
        if low != high or high == 0:
            share = float((alpha < np.iinfo(alpha.dtype).max).mean())
            raise ImageError(
                f"{path}: an alpha channel with {share:.0%} of the pixels transparent, whose brightness is unknown; "
                "save it without transparency"
            )
        values = values[..., :-1]
    result = sitk.GetImageFromArray(values.mean(-1, dtype=np.float64))
    copy: Callable[[Any], None] = result.CopyInformation
    copy(loaded)
    return result
