"""Draw procedural H&E-like slides with known pixel truth: glands in normal tissue, irregular nests in tumour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from scipy.spatial import cKDTree

GLASS, NORMAL, TUMOUR = 0, 1, 2
LESION_SHARE = (0.02, 0.30)  # allowed share of a lesion slide's tissue
LESION_RADIUS_PX0 = (120.0, 350.0)
# Both kinds of tissue are held to these shares and densities, so that only arrangement and shape tell them apart.
EPITHELIUM_SHARE = 0.52
LUMEN_SHARE = 0.065
EPITHELIAL_NUCLEUS_PX0 = 6.0  # mean equivalent radius
PX0_PER_EPITHELIAL_NUCLEUS = 320.0
PX0_PER_STROMAL_NUCLEUS = 1000.0
ACINUS_SPACING_PX0 = 80.0
ACINUS_RADIUS_PX0 = 37.0
ACINUS_LUMEN = 0.34  # of the radius
NUCLEUS_HALF_PX0 = 15
ACINUS_HALF_PX0 = 56

STAINS = np.array([[0.65, 0.70, 0.29], [0.10, 0.93, 0.30]])  # haematoxylin, eosin: absorption of red, green, blue

Bool = NDArray[np.bool_]
Float = NDArray[np.float32]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class _Shapes:
    """n wobbly ellipses: `centre_px0` float [n, 2] (y, x), `axes_px0` float [n, 2] (long, short), `angle` [n] rad."""

    centre_px0: Points
    axes_px0: Points
    angle: Points
    wobble: float


@dataclass(frozen=True)
class _Tissue:
    """Compartments of one slide, bool [h, w] each, and the fibre coordinate float32 [h, w] across the fibres."""

    tissue: Bool
    tumour: Bool
    epithelium: Bool
    lumen: Bool
    across_px0: Float


def _noise(shape_px0: tuple[int, int], scale_px0: float, rng: np.random.Generator, *, even: bool = False) -> Float:
    """Smooth random field float32 [h, w] of zero mean and unit variance, features about `scale_px0` wide.

    `even` takes the slow part out, so that all features come out about equally large.
    """
    bases: list[NDArray[Any]] = []
    for length in shape_px0:
        knots = (np.arange(int(length / scale_px0) + 6) - 2.5) * scale_px0
        bases.append(np.exp(-0.5 * ((np.arange(length)[:, None] - knots) / (0.7 * scale_px0)) ** 2).astype(np.float32))
    coarse = rng.standard_normal((bases[0].shape[1], bases[1].shape[1]), dtype=np.float32)
    if even:
        coarse -= ndi.gaussian_filter(coarse, 1.6)
    field: Float = bases[0] @ coarse @ bases[1].T
    return np.asarray((field - field.mean()) / field.std())


def _tissue_outline(shape_px0: tuple[int, int], rng: np.random.Generator) -> Bool:
    """One or two torn pieces of tissue, bool [h, w], covering 50 to 70 % of the slide."""
    h, w = shape_px0
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
    if rng.random() < 0.5:
        cut = rng.uniform(-0.25, 0.25) + 0.08 * y
        x = np.where(x < cut, (2 * x + 1 - cut) / (1 + cut), (2 * x - 1 - cut) / (1 - cut))
    height = 1 - (np.abs(x) ** 3 + np.abs(y) ** 3) ** (1 / 3)
    height += 0.07 * _noise(shape_px0, min(h, w) / 6, rng) + 0.02 * _noise(shape_px0, 40.0, rng)
    height[:24] = height[-24:] = height[:, :24] = height[:, -24:] = -9
    tissue = height > np.quantile(height[::4, ::4], 1 - rng.uniform(0.54, 0.68))
    pieces = ndi.label(tissue)[0]
    area = np.bincount(pieces[tissue])
    return np.asarray((area > 0.05 * area.sum())[pieces])


def _lesion(tissue: Bool, lesions: int, rng: np.random.Generator) -> Bool:
    """Union of `lesions` smooth irregular blobs inside the tissue, bool [h, w], redrawn until its share fits."""
    if lesions == 0:
        return np.zeros_like(tissue)
    top_px0 = min(LESION_RADIUS_PX0[1], 0.17 * min(tissue.shape))
    low_px0 = min(LESION_RADIUS_PX0[0], 0.8 * top_px0)
    y, x = np.nonzero(tissue[::8, ::8])
    for _ in range(200):
        tumour = np.zeros_like(tissue)
        for _ in range(lesions):
            spot = int(rng.integers(len(y)))
            radius_px0 = rng.uniform(low_px0, top_px0)
            half = int(1.6 * radius_px0)
            top, left = max(0, 8 * y[spot] - half), max(0, 8 * x[spot] - half)
            box = np.s_[top : 8 * y[spot] + half, left : 8 * x[spot] + half]
            dy, dx = np.indices(tumour[box].shape) + np.array([top - 8 * y[spot], left - 8 * x[spot]])[:, None, None]
            angle, edge = np.arctan2(dy, dx), np.ones(dy.shape)
            for order in (2, 3, 4, 5):
                edge += rng.uniform(0.02, 0.32 / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
            tumour[box] |= np.hypot(dy, dx) < radius_px0 * edge
        tumour &= tissue
        if LESION_SHARE[0] <= tumour.sum() / tissue.sum() <= LESION_SHARE[1]:
            return tumour
    raise RuntimeError(f"no lesion layout within {LESION_SHARE} of the tissue of a {tissue.shape} slide")


def _grid(shape_px0: tuple[int, int], spacing_px0: float, jitter: float, rng: np.random.Generator) -> Points:
    """Jittered hexagonal points float [n, 2] (y, x) over the slide, one per 0.866 * spacing squared."""
    reach = int(0.6 * np.hypot(*shape_px0) / spacing_px0) + 2
    row, column = np.mgrid[-reach * 1.2 : reach * 1.2, -reach:reach]
    points = np.stack([row * np.sqrt(0.75), column + 0.5 * (np.rint(row) % 2)], -1).reshape(-1, 2)
    turn = rng.uniform(0, np.pi)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (points + rng.uniform(-jitter, jitter, points.shape)) * spacing_px0 + np.array(shape_px0) / 2
    return np.asarray(points[((points >= 0) & (points < np.array(shape_px0))).all(1)])


def _at(field: NDArray[Any], points: Points) -> NDArray[Any]:
    """Values [n] of a [h, w] map at points float [n, 2] (y, x)."""
    return np.asarray(field[points[:, 0].astype(int), points[:, 1].astype(int)])


def _radius(shapes: _Shapes, half_px0: int, rng: np.random.Generator) -> Float:
    """Relative radius (1 on the outline) around each shape's centre, float32 [n, 2 * half + 1, 2 * half + 1]."""
    dy, dx = np.mgrid[-half_px0 : half_px0 + 1, -half_px0 : half_px0 + 1].astype(np.float32)
    cos, sin = (f(shapes.angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    long_px0, short_px0 = (shapes.axes_px0[:, k].astype(np.float32)[:, None, None] for k in (0, 1))
    u, v = (dx * cos + dy * sin) / long_px0, (dy * cos - dx * sin) / short_px0
    phase = rng.uniform(0, 2 * np.pi, (2, len(cos), 1, 1)).astype(np.float32)
    angle = np.arctan2(v, u)
    edge = 1 + shapes.wobble * (np.cos(3 * angle + phase[0]) + np.cos(2 * angle + phase[1]))
    return np.asarray(np.hypot(u, v) / edge)


def _windows(shapes: _Shapes, half_px0: int, shape_px0: tuple[int, int]) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Index and canvas window of every shape whose window lies inside the slide."""
    h, w = shape_px0
    for k, (y, x) in enumerate(shapes.centre_px0.astype(int)):
        if half_px0 <= y < h - half_px0 and half_px0 <= x < w - half_px0:
            yield k, np.s_[y - half_px0 : y + half_px0 + 1, x - half_px0 : x + half_px0 + 1]


def _acini(allowed: Bool, rng: np.random.Generator) -> _Shapes:
    """Outlines of round normal glands that fit into the bool [h, w] map `allowed`."""
    centre_px0 = _grid(allowed.shape, ACINUS_SPACING_PX0, 0.09, rng)
    room_px0 = 4 * ndi.distance_transform_edt(allowed[::4, ::4])
    gap_px0 = cKDTree(centre_px0).query(centre_px0, k=2)[0][:, 1]
    ratio = np.sqrt(rng.uniform(1, 1.25, len(centre_px0)))
    radius_px0 = np.minimum(rng.normal(ACINUS_RADIUS_PX0, 2.5, len(centre_px0)), 0.5 * gap_px0 / ratio)
    fits = (_at(room_px0, centre_px0 / 4.001) > radius_px0) & (radius_px0 > 22)
    axes_px0 = np.stack([radius_px0 * ratio, radius_px0 / ratio], -1)
    return _Shapes(centre_px0[fits], axes_px0[fits], rng.uniform(0, np.pi, int(fits.sum())), 0.04)


def _compartments(tissue: Bool, tumour: Bool, rng: np.random.Generator) -> tuple[_Tissue, _Shapes]:
    """Lay out epithelium, lumens and fibres: glands in normal tissue, irregular nests with clefts in tumour."""
    shape = tissue.shape
    plain = _noise(shape, 150.0, rng) > 1.5
    acini = _acini(tissue & ~tumour & ~plain, rng)
    epithelium, lumen = np.zeros_like(tissue), np.zeros_like(tissue)
    radius = _radius(acini, ACINUS_HALF_PX0, rng)
    for k, window in _windows(acini, ACINUS_HALF_PX0, shape):
        epithelium[window] |= radius[k] < 1
        lumen[window] |= radius[k] < ACINUS_LUMEN
    if tumour.any():
        nests = _noise(shape, 19.0, rng, even=True)
        nest_cut = np.quantile(nests[tumour], 1 - EPITHELIUM_SHARE - LUMEN_SHARE)
        holes = np.where(nests > nest_cut + 0.35, _noise(shape, 11.0, rng), -9)
        holes_cut = np.quantile(holes[tumour], 1 - LUMEN_SHARE)
        epithelium |= tumour & (nests > nest_cut)
        lumen |= tumour & (holes > holes_cut)
    y, x = np.indices(shape, dtype=np.float32)
    slope = rng.uniform(0, np.pi)
    across = np.float32(np.cos(slope)) * x + np.float32(np.sin(slope)) * y + 35 * _noise(shape, 110.0, rng)
    return _Tissue(tissue, tumour, epithelium & ~lumen, lumen, across), acini


def _ellipses(centre_px0: Points, angle: Points, ratio: tuple[float, float], rng: np.random.Generator) -> _Shapes:
    """Nuclei at the points float [n, 2]: one size distribution for all kinds, axis ratios drawn from `ratio`."""
    radius_px0 = EPITHELIAL_NUCLEUS_PX0 * np.exp(rng.normal(0, 0.1, len(angle)))
    stretch = np.sqrt(rng.uniform(*ratio, len(angle)))
    return _Shapes(centre_px0, np.stack([radius_px0 * stretch, radius_px0 / stretch], -1), angle, 0.05)


def _scatter(part: Bool, px0_per_nucleus: float, rng: np.random.Generator) -> Points:
    """Points float [n, 2], one per `px0_per_nucleus` of the bool [h, w] part, all kept off its edge."""
    inside = ndi.uniform_filter(part.astype(np.float32), 9) > 0.999
    if not inside.any():
        return np.zeros((0, 2))
    spacing_px0 = float(np.sqrt(inside.sum() / (part.sum() / px0_per_nucleus) / np.sqrt(0.75)))
    points = _grid(part.shape, spacing_px0, 0.18, rng)
    return np.asarray(points[_at(inside, points)])


def _nuclei(parts: _Tissue, acini: _Shapes, rng: np.random.Generator) -> list[_Shapes]:
    """Nuclei of every compartment: round in rings, elongated in streams in nests, spindles along the fibres."""
    area_px0 = np.pi * acini.axes_px0.prod(1) * (1 - ACINUS_LUMEN**2)
    count = np.rint(area_px0 / PX0_PER_EPITHELIAL_NUCLEUS).astype(int)
    gland = np.repeat(np.arange(len(count)), count)
    turn = np.arange(len(gland)) - np.repeat(np.cumsum(count) - count, count) + rng.uniform(-0.12, 0.12, len(gland))
    turn *= 2 * np.pi / count[gland]
    along, side = 0.73 * acini.axes_px0[gland, 0] * np.cos(turn), 0.73 * acini.axes_px0[gland, 1] * np.sin(turn)
    cos, sin = np.cos(acini.angle[gland]), np.sin(acini.angle[gland])
    ring = acini.centre_px0[gland] + np.stack([along * sin + side * cos, along * cos - side * sin], -1)
    nuclei = [_ellipses(ring, turn, (1.0, 1.15), rng)]
    nest = _scatter(parts.epithelium & parts.tumour, PX0_PER_EPITHELIAL_NUCLEUS, rng)
    stream = 2.5 * _noise(parts.across_px0.shape, 60.0, rng)
    nuclei.append(_ellipses(nest, _at(stream, nest) + rng.normal(0, 0.2, len(nest)), (1.7, 2.5), rng))
    slopes = [np.gradient(parts.across_px0[::4, ::4], axis=axis) for axis in (0, 1)]
    for zone in (parts.tumour, ~parts.tumour):
        stroma = zone & parts.tissue & ~parts.epithelium & ~parts.lumen
        spindle = _scatter(stroma, PX0_PER_STROMAL_NUCLEUS, rng)
        normal = np.arctan2(*(_at(slope, spindle / 4.001) for slope in slopes))
        nuclei.append(_ellipses(spindle, normal + np.pi / 2 + rng.normal(0, 0.15, len(normal)), (3.2, 4.2), rng))
    return nuclei


def _nuclear_density(shape_px0: tuple[int, int], nuclei: list[_Shapes], rng: np.random.Generator) -> Float:
    """Haematoxylin amount of the nuclei, float32 [h, w], about 1 inside and 0 outside."""
    canvas = np.zeros(shape_px0, np.float32)
    for shapes in nuclei:
        radius = _radius(shapes, NUCLEUS_HALF_PX0, rng)
        size_px0 = np.sqrt(shapes.axes_px0.prod(1)).astype(np.float32)[:, None, None]
        amount = rng.normal(1.0, 0.13, size_px0.shape).astype(np.float32)
        amount = amount * (0.86 + 0.14 * np.minimum(radius, 1) ** 2)  # the rim holds more chromatin
        patches = amount * np.clip((1 - radius) * size_px0 / 1.6 + 0.5, 0, 1)
        for k, window in _windows(shapes, NUCLEUS_HALF_PX0, shape_px0):
            np.maximum(canvas[window], patches[k], out=canvas[window])
    return canvas


def _tiled(shape_px0: tuple[int, int], sigma_px0: float, rng: np.random.Generator) -> Float:
    """Periodic fine noise float32 [h, w] of unit variance."""
    bank = ndi.gaussian_filter(rng.standard_normal((512, 512)).astype(np.float32), sigma_px0, mode="wrap")
    repeats = [-(-length // 512) for length in shape_px0]
    return np.asarray(np.tile(bank / bank.std(), repeats)[: shape_px0[0], : shape_px0[1]])


def _fibres(across_px0: Float, rng: np.random.Generator) -> Float:
    """Fibre texture float32 [h, w] that runs along the contours of the fibre coordinate."""
    line = ndi.gaussian_filter1d(rng.standard_normal(4096).astype(np.float32), 1.6, mode="wrap")
    wave = across_px0 + 3 * _noise(across_px0.shape, 24.0, rng)
    return np.asarray(ndi.gaussian_filter((line / line.std())[wave.astype(np.int32) % 4096], 0.7))


def _paint(parts: _Tissue, nuclei: Float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Stain the compartments and look at them in transmitted light: rgb uint8 [h, w, 3]."""
    shape = nuclei.shape
    masks = np.stack([parts.tissue, parts.epithelium, parts.lumen]).astype(np.float32)
    tissue, epithelium, lumen = ndi.gaussian_filter(masks, (0, 1.2, 1.2))
    grain = _tiled(shape, 1.1, rng)
    patchy = _noise(shape, 130.0, rng)
    # Crowded-looking and washed-out spots fall on both kinds of tissue alike: they mislead colour, not shape.
    spots = np.sign(patchy) * np.clip((np.abs(patchy) - 1.0) / 0.6, 0, 1)
    stain = np.exp(0.09 * _noise(shape, 420.0, rng) + 0.22 * spots) * (1 + 0.02 * grain)
    open_px0 = tissue * (1 - lumen)
    cytoplasm = epithelium * (0.20 + 0.03 * _tiled(shape, 2.0, rng))
    haematoxylin = open_px0 * (0.05 + cytoplasm) * (1 - nuclei) + nuclei * (1.0 + 0.10 * grain)
    stroma = 0.44 + 0.09 * _fibres(parts.across_px0, rng)
    eosin = open_px0 * (epithelium * 0.36 + (1 - epithelium) * stroma) * (1 - 0.35 * nuclei) + 0.03 * tissue
    haematoxylin *= rng.uniform(0.85, 1.15) * stain * tissue
    eosin *= rng.uniform(0.85, 1.15) * np.exp(0.09 * _noise(shape, 420.0, rng) + 0.12 * spots)
    vectors = STAINS + rng.normal(0, 0.025, (2, 3))
    noise = 1.2 * rng.standard_normal(shape, dtype=np.float32)
    light = [243 * np.exp(-h * haematoxylin - e * eosin) + noise for h, e in vectors.T.astype(np.float32)]
    return np.asarray(np.clip(np.rint(np.stack(light, -1)), 0, 255), np.uint8)


def draw_slide(
    size_px0: tuple[int, int], lesions: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one slide of `size_px0` (width, height) with `lesions` tumour blobs (0: none).

    Returns rgb uint8 [h, w, 3] and truth uint8 [h, w] (0 glass, 1 tissue without lesion, 2 tumour), both level 0.
    """
    shape = (size_px0[1], size_px0[0])
    tissue = _tissue_outline(shape, rng)
    tumour = _lesion(tissue, lesions, rng)
    parts, acini = _compartments(tissue, tumour, rng)
    nuclei = _nuclear_density(shape, _nuclei(parts, acini, rng), rng)
    truth = tissue.astype(np.uint8) + tumour.astype(np.uint8)
    return _paint(parts, nuclei, rng), truth
