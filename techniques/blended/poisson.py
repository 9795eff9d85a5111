"""Poisson image editing: insert a region of one image into another without a visible seam.

Pérez, Gangnet and Blake, "Poisson Image Editing", SIGGRAPH 2003.  Inside the region the
result has the *gradients* of the new image, at the region's edge the *colours* of the old
one, and outside it is the old one.  This corrects small offsets of brightness and tint, as a
VAE's round trip causes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))


def poisson_blend(
    old: NDArray[np.float32], new: NDArray[np.float32], edit: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """`new` inside the region `edit` and `old` outside, without a seam.

    `old` and `new` (H, W, C), `edit` (H, W); the result (H, W, C) equals `old` exactly
    wherever `edit` is false.  Any region will do: in several parts, a single pixel, or up
    to the image's border, where nothing is asked of the result.  A region that is the
    whole image has no edge to match: the result is `new`.
    """
    if edit.all() or not edit.any():
        return (new if edit.all() else old).copy()
    # Write the result as new + correction.  Equal gradients mean that the correction is
    # harmonic: each of its pixels is the mean of its neighbours' (Laplace's equation).  At
    # the edge it is known: old - new.
    correction = (old - new).astype(np.float64)
    correction[edit] = membrane(correction, edit)
    result = old.copy()
    result[edit] = (new[edit] + correction[edit]).astype(old.dtype)
    return result


def membrane(values: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The harmonic interpolation of `values` (H, W, C) around the region `inside`: (n, C).

    n is the number of pixels inside, row by row.  Per pixel p, over those of its four
    neighbours q that lie in the image (eq. 7 of the paper, for the correction):

        number of q * f_p  -  sum of f_q inside  =  sum of values_q outside
    """
    from scipy.sparse import csc_array
    from scipy.sparse.linalg import splu

    count = int(inside.sum())
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(count)
    y, x = np.nonzero(inside)
    height, width = inside.shape

    neighbours = np.zeros(count)
    known = np.zeros((count, values.shape[2]))
    rows, columns = [], []
    for down, right in NEIGHBOURS:
        qy, qx = y + down, x + right
        exists = (qy >= 0) & (qy < height) & (qx >= 0) & (qx < width)
        p, qy, qx = np.nonzero(exists)[0], qy[exists], qx[exists]
        neighbours[p] += 1
        is_unknown = inside[qy, qx]
        rows.append(p[is_unknown])
        columns.append(number[qy, qx][is_unknown])
        outside = ~is_unknown
        known[p[outside]] += values[qy[outside], qx[outside]]

    diagonal = np.arange(count)
    row = np.concatenate([diagonal, *rows])
    column = np.concatenate([diagonal, *columns])
    entry = np.concatenate([neighbours, np.full(len(row) - count, -1.0)])
    matrix = csc_array((entry, (row, column)), shape=(count, count))
    # Symmetric and positive definite: every part of the region has a known neighbour.
    solver = splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    sheet: NDArray[np.float64] = solver.solve(known)
    return sheet
