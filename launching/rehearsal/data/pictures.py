"""Made-up digits, photographs and knees: mnist, ImageNet in both forms, fastmri."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from launching.rehearsal.data import tfds_files

DIGITS = {"train": 60_000, "test": 10_000}  # the pipeline asserts so many
DIFFERENT_DIGITS = 500  # over and over: to encode all takes minutes
# In PyTorch the training loader drops an incomplete batch: less than a whole official one would be an endless loop.
IMAGES = {"train": 1024, "held out": 64}
DIFFERENT_IMAGES, CLASSES = 32, 8
# The first hundred files are the validation set, the rest the test set: an empty one is no error but no evaluation.
KNEES_HELD_OUT = 104
KNEES, SLICES = 8, 16


def mnist(folder: Path) -> None:
    """One pattern a class, plus noise."""
    patterns = np.random.RandomState(0).randint(0, 200, (10, 28, 28, 1))

    def digits(seed: int) -> Iterator[dict[str, Any]]:
        rng = np.random.RandomState(seed)
        for label in rng.randint(0, 10, DIFFERENT_DIGITS):
            image = (patterns[label] + rng.randint(0, 56, (28, 28, 1))).astype(np.uint8)
            yield {"image": image, "label": int(label)}

    splits = {split: digits(seed) for seed, split in enumerate(DIGITS)}
    tfds_files.write(folder, "mnist", "3.0.1", splits, counts=DIGITS)


def jpegs() -> list[bytes]:
    from PIL import Image

    rng = np.random.RandomState(0)
    files = []
    for _ in range(DIFFERENT_IMAGES):
        buffer = io.BytesIO()
        Image.fromarray(rng.randint(0, 255, (8, 8, 3), np.uint8)).resize((256, 256)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files


def imagenet_pytorch(folder: Path) -> None:
    """Folders of classes; beyond the first few images links to these."""
    files = jpegs()
    for split, count in (("train", IMAGES["train"]), ("val", IMAGES["held out"])):
        for number in range(count):
            of_class = folder / split / f"n{number % CLASSES:08}"
            of_class.mkdir(parents=True, exist_ok=True)
            first = of_class / f"{number % DIFFERENT_IMAGES}.JPEG"
            if number < DIFFERENT_IMAGES:
                first.write_bytes(files[number])
            else:
                _link(first, of_class / f"{number}.JPEG")
    _imagenet_v2(folder, files)


def imagenet_jax(folder: Path) -> None:
    files = jpegs()
    splits = {"train": _images(files, IMAGES["train"]), "validation": _images(files, IMAGES["held out"])}
    tfds_files.write(folder, "imagenet2012", "5.1.0", splits)
    _imagenet_v2(folder, files)


def _imagenet_v2(folder: Path, files: list[bytes]) -> None:
    splits = {"test": _images(files, IMAGES["held out"])}
    tfds_files.write(folder, "imagenet_v2", "3.0.0", splits, config="matched-frequency")


def _images(files: list[bytes], count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        image = io.BytesIO(files[number % len(files)])
        yield {"image": image, "label": number % CLASSES, "file_name": f"{number}.JPEG"}


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # a file system without links
        shutil.copy(source, path)


def fastmri(folder: Path) -> None:
    """Volumes of Gaussian blobs, their Fourier transform, and a noisy reconstruction.

    Without the noise the structural similarity of smooth images passes both targets in a few updates.
    """
    for name, count, slices in (("train", KNEES, SLICES), ("val", KNEES_HELD_OUT, 1)):
        of_split = folder / f"knee_singlecoil_{name}"
        of_split.mkdir()
        for number in range(count):
            _knee(of_split / f"file{number:07}.h5", slices, np.random.RandomState([len(name), number]))


def _knee(path: Path, slices: int, rng: np.random.RandomState) -> None:
    import h5py

    x, y = np.meshgrid(np.linspace(-1, 1, 320), np.linspace(-1, 1, 320))
    images = np.zeros((slices, 320, 320), np.float32)
    for image in images:
        (at_x, at_y), (wide, high) = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.1, 0.5, 2)
        image[:] = np.exp(-(((x - at_x) / wide) ** 2) - ((y - at_y) / high) ** 2)
    padded = np.zeros((slices, 640, 368), np.float32)
    padded[:, 160:480, 24:344] = images
    axes = (1, 2)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(padded, axes=axes), norm="ortho"), axes=axes)
    kspace = (np.round(kspace * 64) / 64).astype(np.complex64)  # nearly nothing far from the centre: so it compresses
    noisy = (images + np.round(8 * rng.randn(*images.shape)) / 32).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=kspace, chunks=(1, 640, 368), compression="gzip")
        file.create_dataset("reconstruction_esc", data=noisy, chunks=(1, 320, 320), compression="gzip")
        file.attrs["max"] = float(images.max())
