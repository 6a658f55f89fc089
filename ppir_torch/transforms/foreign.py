"""Transform files of other programs, known by their content: not read, but refused by their name.

What they hold maps the other way, or is in coordinates that only the images they belong to tell.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["foreign_kind", "lacks_numbers", "transforms_in"]

HEAD_BYTES = 1 << 16
# What the head of a file begins with or holds -> what the file is.
_MARKS = (
    (rb"\A\s*(//.*\s*)*\(\w+ ", "an elastix parameter file"),
    (rb"\AMNI Transform File", "an MNI .xfm file"),
    (rb"(?m)^type\s*=\s*\d+[^\n]*\s+nxforms|\Atype\s*=\s*\d+", "a FreeSurfer .lta file"),
    (rb"\A#\s*3dvolreg|\A#\s*3dAllineate", "an AFNI matrix"),
    (rb"\A\s*<\?xml|\A\s*<", "an XML file"),
)
_IMAGE_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".vtk")


def foreign_kind(path: Path) -> str:
    """What a file is that ITK does not read as a transform; empty where that is not known.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "flirt.mat"
    >>> _ = file.write_text("1 0 0 5\\n0 1 0 0\\n0 0 1 0\\n0 0 0 1\\n")
    >>> foreign_kind(file)
    'a bare matrix (FSL, greedy, AFNI, ...), which does not say its coordinates'
    """
    if path.name.lower().endswith(_IMAGE_ENDINGS):
        return "an image: of displacements it would not be linear"
    head = _head(path)
    for mark, kind in _MARKS:
        if re.search(mark, head):
            return kind
    rows = [line.split() for line in head.decode("latin-1").splitlines() if line.strip() and line.strip()[0] != "#"]
    if rows and all(_is_number(word) for row in rows for word in row) and sum(map(len, rows)) in (6, 9, 12, 16):
        return "a bare matrix (FSL, greedy, AFNI, ...), which does not say its coordinates"
    return ""


def transforms_in(path: Path) -> int:
    """How many transforms stand side by side in an ITK file; a composite is one.

    SimpleITK reads the first and says nothing of the others.
    """
    content = path.read_bytes()
    if b"CompositeTransform" in content:
        return 1
    ending = path.suffix.lower()
    # In HDF5 the name stands once in the group of each transform; in MATLAB's format a matrix `fixed` follows each.
    of_ending = {".mat": rb"fixed\x00", ".h5": rb"TransformType\x00", ".hdf5": rb"TransformType\x00"}
    return max(1, len(re.findall(of_ending.get(ending, rb"(?m)^Transform:"), content)))


def lacks_numbers(path: Path) -> bool:
    """Whether a text of ITK's names a transform without its parameters: SimpleITK takes the identity's then."""
    content = path.read_bytes()
    if not content.startswith(b"#Insight Transform File"):
        return False
    named = re.findall(rb"(?m)^Transform:\s*(\w+)", content)
    needed = sum(not name.startswith(b"Composite") for name in named)
    return any(len(re.findall(rb"(?m)^%s:" % line, content)) != needed for line in (b"Parameters", b"FixedParameters"))


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
