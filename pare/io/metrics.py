"""How two images differ: mean squared error, PSNR, SSIM, and the distance of their structure.

Images are (H, W, 3) uint8.  Every measure may be taken over a mask (H, W) alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, sobel

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
SSIM_SIGMA = 1.5  # pixels; the Gaussian window of Wang et al., section III.B
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # its stabilisers for images in [0, 1]
EDGE_SIGMA = 1.0  # pixels; lets an edge count as the same when it moved by one


def mse(a: Pixels, b: Pixels, mask: Mask) -> float:
    """Mean squared error over the mask's pixels, of channels in [0, 1]; nan for an empty mask."""
    if not mask.any():
        return math.nan
    return float(np.square(unit(a)[mask] - unit(b)[mask]).mean())


def psnr(error: float) -> float:
    """A mean squared error of channels in [0, 1] as dB; inf for none."""
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Pixels, b: Pixels, mask: Mask) -> float:
    """Mean structural similarity of the luma over the mask's pixels; 1 for equal images.

    Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, IEEE TIP 13(4), 2004, eq. 13,
    with their Gaussian window.  What lies beyond the mask is taken from `a` in both, so that
    a window that reaches over the mask's border sees no difference there.
    """
    if not mask.any():
        return math.nan
    x, y = unit(a) @ LUMA, unit(np.where(mask[..., None], b, a)) @ LUMA
    mean_x, mean_y = window(x), window(y)
    variance_x = window(x * x) - mean_x**2
    variance_y = window(y * y) - mean_y**2
    covariance = window(x * y) - mean_x * mean_y
    score = (2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
    score /= (mean_x**2 + mean_y**2 + SSIM_C1) * (variance_x + variance_y + SSIM_C2)
    return float(score[mask].mean())


def structure_distance(a: Pixels, b: Pixels) -> float:
    """1 - cosine between the two images' edge maps: 0 the same drawing, 1 none in common.

    An edge map is the strength of the luma's gradient, slightly blurred.  It knows contours,
    not colours, so that a road under snow can have the structure of the road in the sun.
    """
    edges_a, edges_b = edge_map(a), edge_map(b)
    norm = math.sqrt(float((edges_a**2).sum() * (edges_b**2).sum()))
    return 1 - float((edges_a * edges_b).sum()) / norm if norm else 0.0


def edge_map(image: Pixels) -> Array:
    """(H, W): how strong an edge is there, blurred."""
    luma = unit(image) @ LUMA
    strength = np.hypot(sobel(luma, axis=0), sobel(luma, axis=1))
    blurred: Array = gaussian_filter(strength, EDGE_SIGMA)
    return blurred


def window(values: Array) -> Array:
    averaged: Array = gaussian_filter(values, SSIM_SIGMA, truncate=3.5)
    return averaged


def unit(image: Pixels) -> Array:
    """Channels in [0, 1]."""
    return image.astype(np.float64) / 255
