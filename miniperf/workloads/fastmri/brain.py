"""Images of real anatomy from one brain: oblique cuts through slabs of it, in contrasts that a scanner could be set to.

The brain is the MNI ICBM152 template (2009a, symmetric, 1 mm), the average of 152 heads (Fonov et al. 2011). It is a
T1-weighted image without the skull, and how much of each voxel is grey and white matter. The package `nilearn` (BSD-3)
carries it, and calls the template's own licence unknown.

There is one brain, so slabs of it are held out. From back to front every second slab is for training. The others are in
turn for validation and for test. A cut reads no voxel of another slab. Slabs from left to right would hold nothing out:
the halves mirror each other.
"""

import nibabel
import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from miniperf.data_packages import folder_of

PACKAGE = "nilearn==0.14.1"
FIRST, THICKNESS = 28, 22  # mm, of the slabs, from the back of the brain
ORDER = ("train", "validation", "train", "test") * 2
SPACING = 1.5  # mm between the slices of a volume
FIELD = (42.0, 60.0)  # mm, the least and the greatest field of view
TISSUE = 0.8  # of a volume, at least: the metric of fastMRI looks at the centre of the image alone
TILT = 0.25  # radians, at most, about either axis in the plane


def maps() -> np.ndarray:
    """T1-weighted image, grey matter, white matter and the rest of the brain, float32 in [0, 1], [4, x, y, z].

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    folder = folder_of("nilearn", "mini_fastmri needs", f"--no-deps {PACKAGE}") / "datasets" / "data"
    names = [folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")]
    t1, grey, white = (np.asarray(nibabel.nifti1.load(name).dataobj, np.float32) / 255 for name in names)
    return np.stack([t1, grey, white, (t1 > 0) * np.clip(1 - grey - white, 0, 1)])


def slabs(whole: np.ndarray, split: str) -> list[np.ndarray]:
    """The slabs of a split, [4, x, THICKNESS, z] each, of maps [4, x, y, z]."""
    starts = [FIRST + THICKNESS * i for i, name in enumerate(ORDER) if name == split]
    return [whole[:, :, start : start + THICKNESS] for start in starts]


def cut(rng: np.random.RandomState, slab: np.ndarray, slices: int, side: int) -> np.ndarray:
    """Parallel slices at a random place and angle, in a random contrast, float [slices, side, side].

    The plane is turned by any angle and tilted a little. Most of it lies in the brain, and none of it leaves the slab
    by its faces (beyond the other sides is air). The contrast is the T1-weighted image mixed with an image in which
    each tissue has a brightness of its own.
    """
    axis = (np.arange(side) + 0.5) / side - 0.5
    depth = SPACING * (np.arange(slices) - (slices - 1) / 2)
    while True:
        across = rng.uniform(*FIELD) * axis
        y, x, z = np.meshgrid(depth, across, across, indexing="ij")
        turn = Rotation.from_euler("YXZ", [rng.uniform(0, 2 * np.pi), *rng.uniform(-TILT, TILT, 2)])
        points = turn.apply(np.stack([x, y, z], axis=-1).reshape(-1, 3))  # [slices * side * side, xyz]
        least, most = -points[:, 1].min(), THICKNESS - 1 - points[:, 1].max()
        if least > most:
            continue
        centre = rng.uniform([0, least, 0], [slab.shape[1] - 1, most, slab.shape[3] - 1])
        t1 = map_coordinates(slab[0], (points + centre).T, order=1)
        if (t1 > 0).mean() >= TISSUE:
            break
    tissues = [map_coordinates(volume, (points + centre).T, order=1) for volume in slab[1:]]
    share, brightness = rng.uniform(0, 1), rng.uniform(0.2, 1, 3)
    return (share * t1 + (1 - share) * brightness @ tissues).reshape(slices, side, side)
