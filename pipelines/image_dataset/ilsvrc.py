"""Classes of ILSVRC's validation images: from the development kit, or from Kaggle's table.

ILSVRC2012_validation_ground_truth.txt   line n: the ILSVRC id, 1..1000, of ILSVRC2012_val_0000000n.JPEG
meta.mat, or map_clsloc.txt              synset of each ILSVRC id, which is not its place in sorted order
LOC_val_solution.csv                     ILSVRC2012_val_00048981,n03995372 85 1 499 272
"""

from __future__ import annotations

import functools
import io
import posixpath
import re
import tarfile

from trainer import storage
from trainer.errors import Outage, UserError

SYNSETS = "LOC_synset_mapping.txt"
_TRUTH = re.compile(r"validation_ground_truth\.txt$")
_NAMES = re.compile(r"(^|/)(meta\.mat|map_clsloc\.txt)$")
_LINE = re.compile(r"(?P<synset>n\d{8})\s+(?P<id>\d+)\b|(?P<id2>\d+)\s+(?P<synset2>n\d{8})\b")


def image_number(name: str) -> int | None:
    """Number of a validation image from its file name; None if the name has none."""
    found = re.search(r"_val_(\d+)\.\w+$", name)
    return int(found[1]) if found else None


def read_synset_lines(text: str) -> dict[int, str]:
    """Synset of each id from lines that hold both, such as ``n02119789 1 kit_fox``."""
    found = [match for match in map(_LINE.match, text.splitlines()) if match]
    return {int(match["id"] or match["id2"]): match["synset"] or match["synset2"] for match in found}


def read_meta(data: bytes) -> dict[int, str]:
    """Synset of each id from the development kit's ``meta.mat``: a struct array with ILSVRC2012_ID and WNID."""
    from scipy.io import loadmat  # here: only validation images without Kaggle's table need it

    rows = loadmat(io.BytesIO(data), squeeze_me=True, variable_names=["synsets"])["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows.reshape(-1)}


def _devkit_files(address: str) -> dict[str, bytes]:
    """Contents of the development kit's files by name, from its tar or from a folder with its files."""
    if ".tar" in posixpath.basename(address):
        with tarfile.open(fileobj=io.BytesIO(storage.read(address))) as archive:
            wanted = [info for info in archive if _TRUTH.search(info.name) or _NAMES.search(info.name)]
            opened = {info.name: archive.extractfile(info) for info in wanted if info.isreg()}
            return {name: file.read() for name, file in opened.items() if file}
    is_text = address.endswith(".txt")
    found = storage.find(address.rpartition("/")[0] if is_text else address, deep=not is_text)
    return {name: storage.read(name) for name in found if _TRUTH.search(name) or _NAMES.search(name)}


def read_devkit(address: str) -> dict[int, str]:
    """Synset of each validation image by its number.

    Args:
        address: of the development kit's tar, of a folder with its files, or of its ground truth file.

    Raises:
        UserError: a file is missing, or the files do not fit together.
    """
    try:
        files = _devkit_files(address)
        truth = next((data for name, data in files.items() if _TRUTH.search(name)), None)
        lines = next((data for name, data in files.items() if name.endswith("map_clsloc.txt")), None)
        meta = next((data for name, data in files.items() if name.endswith("meta.mat")), None)
        if truth is None or (lines is None and meta is None):
            raise UserError(
                f"{address}: expected ILSVRC2012_validation_ground_truth.txt and meta.mat (or map_clsloc.txt). "
                f"Received {sorted(files) or 'neither'}."
            )
        ids = [int(line) for line in truth.split()]
        synsets = read_synset_lines(lines.decode()) if lines is not None else read_meta(meta or b"")
        return {number: synsets[id_] for number, id_ in enumerate(ids, start=1)}
    except KeyError as error:
        raise UserError(f"{address}: no synset for id {error} of the ground truth") from None
    except (UserError, Outage):
        raise
    except Exception as error:  # loadmat raises many kinds for files that are not MATLAB's
        raise UserError(f"{address} is not a development kit of ILSVRC: {error}") from None


def read_solution(address: str) -> dict[int, str]:
    """Synset of each validation image by its number, from Kaggle's table.

    Raises:
        UserError: no line names a validation image and a synset.
    """
    text = storage.read(address).decode(errors="replace")
    found = re.findall(r"^ILSVRC\d+_val_(\d+),(n\d{8})\b", text, re.MULTILINE)
    if not found:
        raise UserError(f"{address}: expected lines such as ILSVRC2012_val_00048981,n03995372 85 1 499 272")
    return {int(number): synset for number, synset in found}


@functools.lru_cache(maxsize=4)
def validation_synsets(address: str) -> dict[int, str]:
    """Synset of each validation image by its number, from Kaggle's table or a development kit."""
    return read_solution(address) if address.endswith(".csv") else read_devkit(address)


def listed_synsets(address: str) -> set[str]:
    """The synsets of Kaggle's ``LOC_synset_mapping.txt``, one at the start of each line."""
    return set(re.findall(r"^n\d{8}\b", storage.read(address).decode(errors="replace"), re.MULTILINE))
