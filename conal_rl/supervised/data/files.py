"""Reading a data set's files, with errors in one line that name the file and what was expected."""

from __future__ import annotations

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

Array = NDArray[Any]


class DataError(ConalError):
    """A data set's file or folder is missing, damaged, or not as its format says."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn what goes wrong with a file into a DataError of one line that says what it should be."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; expected there: {what}") from error
    except ConalError:
        raise
    except Exception as error:  # the readers of damaged files raise nearly anything
        reason = str(error).partition("\n")[0] or "no reason given"
        raise DataError(f"{path} cannot be read as {what}: {reason}") from error


def require_files(paths: Iterable[Path], what: str) -> None:
    """Raise a DataError that names the first of the files that is missing."""
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is missing; expected there: {what}")


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not blank, without what surrounds them."""
    with reading(path, what):
        lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def read_npy(path: Path, shape: tuple[int, ...], what: str) -> Array:
    """An array of that shape, of numbers; no pickle is ever loaded."""
    with reading(path, what):
        array = np.load(path, allow_pickle=False)
    require_shape(path, array, shape)
    require_numbers(path, array)
    return np.asarray(array)


def read_image(path: Path, what: str, mode: str | None = None) -> Array:
    """An image `(height, width)` or `(height, width, channel)`, converted to `mode` if given.

    Raises:
        ExtraError: pillow is not installed.
    """
    image_module = import_extra("PIL.Image", "pillow", "vision")
    with reading(path, what), image_module.open(path) as image:
        return np.array(image.convert(mode) if mode else image)


def require_shape(path: Path, array: Any, shape: tuple[int, ...]) -> None:
    """Raise a DataError that names the file unless the array has that shape."""
    found = getattr(array, "shape", type(array).__name__)
    if found != shape:
        raise DataError(f"{path}: expected shape {shape}, found {found}")


def require_numbers(path: Path, array: Array) -> None:
    """Raise a DataError that names the file unless the array is of real numbers."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected numbers, found {array.dtype}")


def require_values(path: Path, array: Array, low: float, high: float) -> None:
    """Raise a DataError that names the file unless values are `low` to `high`; NaN never is.

    With integers for both bounds, the values must be integers too.
    """
    require_numbers(path, array)
    whole = isinstance(low, int) and isinstance(high, int)
    bad = ~((array >= low) & (array <= high))
    if whole:
        bad |= array != np.round(array)
    if bad.any():
        kind = "integers" if whole else "values"
        raise DataError(f"{path}: expected {kind} {low} to {high}, found {array[bad][0]}")


def normalise(image: Array) -> Tensor:
    """Bytes `(height, width, 3)` to `(3, height, width)`, with ImageNet's mean 0 and deviation 1.

    LibMTL does so wherever it reads image files (Office); torchvision's weights expect it.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (pixels - mean) / deviation


def resize(
    image: Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic", "nearest-exact"]
) -> Tensor:
    """An image `(channel, height, width)` of any dtype at `size`, smoothed where it shrinks."""
    if tuple(image.shape[1:]) == size:
        return image
    smooth = mode != "nearest-exact"
    resized = F.interpolate(image[None].float(), size, mode=mode, antialias=smooth)[0]
    return resized.to(image.dtype)
