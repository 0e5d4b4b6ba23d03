"""Readers of a data set's files; each error names the file and what it should hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from conal_rl.errors import ConalError, import_extra
from conal_rl.files import read_bytes, read_text, require_regular

Array = NDArray[Any]
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of wrong bytes


class DataError(ConalError):
    """A data set's file or folder is missing, damaged, or does not follow its format.

    Attributes:
        where: the file, or a line of it.
        got: its wrong content.
        expected: the right content.
    """

    where = got = expected = ""


def data_error(
    where: Path | str, got: str, expected: str, advice: str = "Download the data set again"
) -> DataError:
    """Return the error to raise if the file `where` holds `got` instead of `expected`."""
    error = DataError(f"{where}: got {got}, expected {expected}. {advice}")
    error.where, error.got, error.expected = str(where), got, expected
    return error


def missing_file(path: Path, what: str) -> DataError:
    """Return the error to raise if the file `path`, described by `what`, does not exist."""
    return data_error(path, "no file", what, "Check the data set's folder")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raise a DataError of one line if the block cannot read `path`, described by `what`."""
    try:
        require_regular(path)
        yield
    except FileNotFoundError as error:
        raise missing_file(path, what) from error
    except ConalError:
        raise
    except Exception as error:  # readers raise errors of many types for a damaged file
        reason = str(error).partition("\n")[0] or "no reason given"
        raise data_error(path, f"a file that cannot be read ({reason})", what) from error


def is_hidden(name: str) -> bool:
    """Return whether a file does not belong to a data set, such as `._0.npy` from macOS."""
    return name.startswith(".")


def require_files(paths: Iterable[Path], what: str) -> None:
    """Raise a DataError that names the first missing file."""
    for path in paths:
        if not path.is_file():
            raise missing_file(path, what)


def read_lines(path: Path, what: str) -> list[str]:
    """Return the lines of a text file, stripped and without blank lines."""
    with reading(path, what):
        lines = read_text(path).splitlines()
    return [line.strip() for line in lines if line.strip()]


def utf8_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, as they are, without a BOM."""
    lines = []
    for number, line in numbered_lines(path):
        require_utf8(line, f"{path}, line {number}")
        lines.append(line)
    return lines


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Return the lines with their numbers, without a BOM; `require_utf8` judges each of them."""
    try:
        content = read_bytes(path)
    except OSError as error:
        got = f"{error.strerror or error}"
        raise data_error(path, got, "a readable file", "Check the folder") from error
    text = content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    # splitlines would also split at characters inside texts, such as U+2028.
    return enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)


def require_utf8(line: str, where: str) -> None:
    """Raise a DataError that names the first byte of a line of `numbered_lines` that is wrong."""
    if not line.isascii() and (found := _NOT_UTF8.search(line)):
        raise data_error(where, f"byte 0x{ord(found[0]) - 0xDC00:02x}", "UTF-8")


def read_npy(path: Path, shape: tuple[int, ...], what: str) -> Array:
    """Return an array of numbers of the given shape; pickles are never loaded."""
    with reading(path, what):
        array = np.load(path, allow_pickle=False)
    require_shape(path, array, shape)
    require_numbers(path, array)
    return np.asarray(array)


def read_image(path: Path, what: str, mode: str | None = None) -> Array:
    """Return an image `(height, width)` or `(height, width, channel)`, in `mode` if given.

    Raises:
        ExtraError: pillow is not installed.
    """
    image_module = import_extra("PIL.Image", "pillow", "vision")
    with reading(path, what), image_module.open(path) as image:
        return np.array(image.convert(mode) if mode else image)


def require_shape(path: Path, array: Any, shape: tuple[int, ...]) -> None:
    """Raise a DataError that names the file unless the array has the given shape."""
    array_shape = getattr(array, "shape", type(array).__name__)
    if array_shape != shape:
        raise data_error(path, f"shape {array_shape}", f"shape {shape}")


def require_numbers(path: Path, array: Array) -> None:
    """Raise a DataError that names the file unless the array holds real numbers."""
    if array.dtype.kind not in "biuf":
        raise data_error(path, f"values of type {array.dtype}", "numbers")


def require_values(path: Path, array: Array, low: float, high: float, unit: str = "") -> None:
    """Raise a DataError that names the file unless all values are between `low` and `high`.

    NaN is refused. If both bounds are integers, the values must be integers too. The error names
    the `unit`.
    """
    require_numbers(path, array)
    whole = isinstance(low, int) and isinstance(high, int)
    bad = ~((array >= low) & (array <= high))
    if whole:
        bad |= array != np.round(array)
    if bad.any():
        kind = "integers" if whole else "values"
        raise data_error(
            path, f"the value {array[bad][0]}", f"{kind} {low} to {high}{unit and f' {unit}'}"
        )


def normalise(image: Array) -> Tensor:
    """Map bytes `(height, width, 3)` to `(3, height, width)`, by ImageNet's mean and deviation.

    LibMTL does the same for image files (Office). torchvision's weights expect it.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (pixels - mean) / deviation


def resize(
    image: Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic", "nearest-exact"]
) -> Tensor:
    """Resize an image `(channel, height, width)` of any dtype, with smoothing if it shrinks."""
    if tuple(image.shape[1:]) == size:
        return image
    smooth = mode != "nearest-exact"
    resized = F.interpolate(image[None].float(), size, mode=mode, antialias=smooth)[0]
    return resized.to(image.dtype)
