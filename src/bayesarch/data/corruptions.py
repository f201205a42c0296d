"""Corrupted images: the kinds and five severities of CIFAR-10-C, generated anew. numpy, scipy and Pillow.

Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019. The parameters are those of its CIFAR variant as we recall them, written in pixels of a 32 x 32 image and
scaled to the side at hand; frost, whose original lays photographs of frost over an image, is a noise texture here. So
numbers are comparable within this tool, and not with published ones.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

__all__ = ["CORRUPTIONS", "STANDARD", "corrupt"]

Images = np.ndarray
Kind = Callable[[Images, int, np.random.Generator], Images]


def corrupt(images: np.ndarray, kind: str, severity: int, *, seed: int = 0) -> np.ndarray:
    """Return corrupted images of the same shape and type.

    Args:
        images: shape (n, H, W, C): uint8, or floats, whose range over all images is taken for 0 to 1.
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: decides what is random; the same for the same seed, kind and severity.

    Raises:
        ValueError: for an unknown kind or severity.
    """
    if kind not in CORRUPTIONS or severity not in range(1, 6):
        raise ValueError(f"corruptions are {', '.join(CORRUPTIONS)} of severity 1 to 5; got {kind!r}, {severity!r}")
    whole = images.dtype == np.uint8
    low, high = (0.0, 255.0) if whole else (float(images.min()), float(images.max()))
    scaled = (images.astype(np.float64) - low) / max(high - low, 1e-12)
    rng = np.random.default_rng([seed, severity, sorted(CORRUPTIONS).index(kind)])
    out = np.clip(CORRUPTIONS[kind](scaled, severity - 1, rng), 0, 1) * (high - low) + low
    return np.rint(out).astype(np.uint8) if whole else out.astype(images.dtype)


def _pixels(x: Images, values: tuple[float, ...], s: int) -> float:
    """Return a length in pixels of these images, given for a side of 32."""
    return values[s] * min(x.shape[1:3]) / 32


def gaussian_noise(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images with normal noise."""
    return x + rng.normal(size=x.shape, scale=(0.04, 0.06, 0.08, 0.09, 0.10)[s])


def shot_noise(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images of counted photons."""
    c = (500, 250, 100, 75, 50)[s]
    noisy: Images = rng.poisson(np.maximum(x, 0) * c) / c
    return noisy


def impulse_noise(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images with a share of values at black or white."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[s]
    hit, white = rng.random(x.shape) < share, rng.random(x.shape) < 0.5
    return np.where(hit, white.astype(x.dtype), x)


def speckle_noise(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images with noise in proportion to what is there."""
    noisy: Images = x + x * rng.normal(size=x.shape, scale=(0.06, 0.1, 0.12, 0.16, 0.2)[s])
    return noisy


def _blurred(x: Images, sigma: float) -> Images:
    from scipy.ndimage import gaussian_filter

    out: Images = gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")
    return out


def gaussian_blur(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images blurred by a Gaussian."""
    return _blurred(x, _pixels(x, (0.4, 0.6, 0.7, 0.8, 1.0), s))


def _filtered(x: Images, kernel: np.ndarray) -> Images:
    from scipy.ndimage import convolve

    out: Images = convolve(x, kernel[None, :, :, None] / kernel.sum(), mode="nearest")
    return out


def defocus_blur(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images blurred by a disk."""
    radius = _pixels(x, (0.6, 0.9, 1.2, 1.6, 2.0), s)
    reach = int(np.ceil(radius)) + 1
    grid = np.arange(-reach, reach + 1)
    distance = np.hypot(grid[:, None], grid[None])
    return _filtered(x, np.clip(radius + 0.5 - distance, 0, 1))


def motion_blur(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images smeared along a line of random direction, one for each image."""
    length = max(_pixels(x, (2.0, 3.0, 4.0, 5.0, 6.0), s), 1.0)
    reach = int(np.ceil(length / 2)) + 1
    grid = np.arange(-reach, reach + 1)
    angles = rng.uniform(-np.pi / 4, np.pi / 4, 8)
    out = np.empty_like(x)
    for i, angle in enumerate(angles):
        along = grid[None] * np.cos(angle) + grid[:, None] * np.sin(angle)
        across = -grid[None] * np.sin(angle) + grid[:, None] * np.cos(angle)
        kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
        out[i::8] = _filtered(x[i::8], kernel)
    return out


def _zoomed(x: Images, factor: float) -> Images:
    from scipy.ndimage import affine_transform

    centre = (np.array(x.shape[1:3]) - 1) / 2
    matrix, offset = np.array([1, 1 / factor, 1 / factor, 1]), np.zeros(4)
    offset[1:3] = centre - centre / factor
    out: Images = affine_transform(x, matrix, offset, order=1, mode="nearest")
    return out


def zoom_blur(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return the mean of images zoomed further and further."""
    factors = np.linspace(1.0, (1.06, 1.11, 1.16, 1.21, 1.26)[s], 6)
    return np.mean([_zoomed(x, float(f)) for f in factors], axis=0)


def glass_blur(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images whose neighbouring pixels were swapped at random, and blurred."""
    sigma, rounds = _pixels(x, (0.05, 0.25, 0.4, 0.25, 0.4), s), (1, 1, 1, 3, 4)[s]
    out = _blurred(x, sigma)
    n, h, w, _ = out.shape
    rows, cols = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    for _ in range(rounds):
        moves = rng.integers(-1, 2, (2, n, h, w))
        r, c = np.clip(rows + moves[0], 0, h - 1), np.clip(cols + moves[1], 0, w - 1)
        out = out[np.arange(n)[:, None, None], r, c]
    return _blurred(out, sigma)


def _plasma(n: int, side: tuple[int, int], decay: float, rng: np.random.Generator) -> Images:
    """Return clouds in [0, 1], shape (n, H, W, 1): octaves of smooth noise, each `decay` times weaker."""
    from scipy.ndimage import zoom

    total, weight, cells = np.zeros((n, *side)), 1.0, 2
    while cells <= max(side):
        coarse = rng.random((n, cells + 1, cells + 1))
        total += weight * zoom(coarse, (1, side[0] / (cells + 1), side[1] / (cells + 1)), order=1, mode="nearest")
        weight, cells = weight / decay, 2 * cells
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    return ((total - low) / np.maximum(high - low, 1e-12))[..., None]


def fog(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images behind clouds."""
    strength, decay = (0.2, 0.5, 0.75, 1.0, 1.5)[s], (3.0, 3.0, 2.5, 2.0, 1.75)[s]
    top = x.max((1, 2, 3), keepdims=True)
    return (x + strength * _plasma(len(x), x.shape[1:3], decay, rng)) * top / (top + strength)


def frost(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images under a pale, sharp-edged texture."""
    keep, add = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[s]
    texture = np.abs(2 * _plasma(len(x), x.shape[1:3], 1.3, rng) - 1)
    return keep * x + add * (1 - texture) ** 2


def snow(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return paler images with flakes smeared by the wind."""
    share, keep = (0.03, 0.05, 0.07, 0.09, 0.12)[s], (0.95, 0.9, 0.85, 0.8, 0.75)[s]
    flakes = (rng.random((*x.shape[:3], 1)) < share).astype(x.dtype)
    flakes = np.clip(motion_blur(flakes, s, rng) * (1 + 2 * s / 4), 0, 1)
    pale = keep * x + (1 - keep) * np.maximum(x, x.mean((1, 2, 3), keepdims=True) * 1.5 + 0.5)
    return pale + flakes


def spatter(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images with drops of mud or water on the lens."""
    threshold = (0.82, 0.78, 0.74, 0.7, 0.66)[s]
    drops = np.clip((_plasma(len(x), x.shape[1:3], 1.5, rng) - threshold) * 8, 0, 1)
    return x * (1 - drops) + drops * (0.7 if s % 2 == 0 else 0.25)


def brightness(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return brighter images."""
    return x + (0.05, 0.1, 0.15, 0.2, 0.3)[s]


def contrast(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images nearer to their mean."""
    mean = x.mean((1, 2), keepdims=True)
    faded: Images = (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[s] + mean
    return faded


def saturate(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images of weaker or stronger colours; grey ones get weaker or stronger contrast about 1/2."""
    factor = (0.3, 0.1, 1.5, 2.0, 2.5)[s]
    grey = x.mean(3, keepdims=True) if x.shape[3] > 1 else np.full_like(x, 0.5)
    return grey + factor * (x - grey)


def elastic_transform(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images stretched here and there."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    side = min(x.shape[1:3])
    amount, smooth = _pixels(x, (0.6, 0.9, 1.2, 1.6, 2.0), s), max(side / 10, 1.0)
    n, h, w, channels = x.shape
    moves = gaussian_filter(rng.uniform(-1, 1, (2, n, h, w)), (0, 0, smooth, smooth), mode="wrap")
    moves *= amount / np.maximum(np.abs(moves).max((2, 3), keepdims=True), 1e-12)
    index, rows, cols = np.meshgrid(np.arange(n), np.arange(h), np.arange(w), indexing="ij")
    where = [index, rows + moves[0], cols + moves[1]]
    return np.stack([map_coordinates(x[..., c], where, order=1, mode="nearest") for c in range(channels)], -1)


def _each(x: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    """Return images changed one by one by Pillow, through 8 bits."""
    made = []
    for one in np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8):
        planes = [one] if one.shape[2] == 3 else [one[..., c] for c in range(one.shape[2])]
        made.append(np.dstack([np.asarray(change(Image.fromarray(plane))) for plane in planes]))
    return np.stack(made) / 255.0


def pixelate(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images made of coarse squares."""
    h, w = x.shape[1:3]
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[s]
    small = max(int(w * share), 1), max(int(h * share), 1)
    return _each(x, lambda image: image.resize(small, Image.Resampling.BOX).resize((w, h), Image.Resampling.NEAREST))


def jpeg_compression(x: Images, s: int, rng: np.random.Generator) -> Images:
    """Return images saved as JPEG of low quality."""

    def saved(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=(80, 65, 58, 50, 40)[s])
        return Image.open(buffer)

    return _each(x, saved)


CORRUPTIONS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression, speckle_noise, gaussian_blur, spatter,
        saturate,
    )
}  # fmt: skip
"""Every kind by name; the first fifteen are the benchmark's, the last four its extra ones."""
STANDARD = tuple(CORRUPTIONS)[:15]
