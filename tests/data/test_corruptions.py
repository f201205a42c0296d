"""Corruptions: shapes, ranges, severity, and the one property that makes each what it is called."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from bayesarch.data.corruptions import CORRUPTIONS, STANDARD, corrupt


@pytest.fixture(scope="module")
def photos():
    """Smooth colour images of 32 x 32 pixels with an edge in them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32] / 31
    waves = [
        np.stack([0.5 + 0.4 * np.sin(6 * (a * x + b * y) + c) for c in range(3)], -1) for a, b in rng.random((6, 2))
    ]
    images = np.stack(waves)
    images[:, 10:20, 10:20] = 0.1
    return np.rint(255 * images).astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_kind_keeps_shape_and_type_and_gets_worse(kind, photos):
    distances = []
    for severity in range(1, 6):
        out = corrupt(photos, kind, severity)
        assert out.shape == photos.shape
        assert out.dtype == np.uint8
        assert np.array_equal(out, corrupt(photos, kind, severity)), "the same seed, the same corruption"
        distances.append(np.abs(out.astype(float) - photos).mean())
    assert min(distances) > 0
    if kind != "saturate":  # from weaker colours to stronger ones
        assert distances[4] > distances[0]
        assert np.corrcoef(range(5), distances)[0, 1] > 0.6


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_small_grey_images_and_floats_work_too(kind):
    digits = load_digits().images[:5, :, :, None]
    out = corrupt(digits.astype(np.float32), kind, 5)
    assert out.shape == digits.shape
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 16


def test_there_are_the_fifteen_of_the_benchmark_and_four_more():
    assert len(STANDARD) == 15
    assert set(CORRUPTIONS) - set(STANDARD) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    with pytest.raises(ValueError, match="severity 1 to 5"):
        corrupt(np.zeros((1, 8, 8, 1), np.uint8), "fog", 6)
    with pytest.raises(ValueError, match="gaussian_noise"):
        corrupt(np.zeros((1, 8, 8, 1), np.uint8), "hail", 1)


def roughness(images):
    return np.abs(np.diff(images.astype(float), axis=2)).mean()


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"])
def test_noise_roughens_and_blur_smooths(kind, photos):
    assert roughness(corrupt(photos, kind, 3)) > 1.3 * roughness(photos)
    for blur in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur"):
        assert roughness(corrupt(photos, blur, 3)) < roughness(photos)


def test_means_and_spreads_are_as_the_names_say(photos):
    assert corrupt(photos, "brightness", 3).mean() > photos.mean() + 20
    assert corrupt(photos, "contrast", 3).std() < 0.6 * photos.std()
    colour = np.abs(photos.astype(float) - photos.mean(3, keepdims=True)).mean()
    for severity, sign in ((1, -1), (5, 1)):
        out = corrupt(photos, "saturate", severity).astype(float)
        assert sign * (np.abs(out - out.mean(3, keepdims=True)).mean() - colour) > 0
    assert corrupt(photos, "impulse_noise", 5)[photos < 200].max() == 255
    blocks = corrupt(photos, "pixelate", 5)
    assert (np.diff(blocks.astype(int), axis=1) == 0).all((2, 3)).mean() > (
        np.diff(photos.astype(int), axis=1) == 0
    ).all((2, 3)).mean()


def test_noise_has_the_size_it_should(photos):
    flat = np.full((20, 32, 32, 3), 128, np.uint8)
    noisy = corrupt(flat, "gaussian_noise", 5).astype(float)
    assert noisy.std() / 255 == pytest.approx(0.10, rel=0.05)
    assert corrupt(flat, "shot_noise", 5).astype(float).std() / 255 == pytest.approx((0.5 / 50) ** 0.5, rel=0.05)
    assert (corrupt(flat, "impulse_noise", 4) != 128).mean() == pytest.approx(0.05, rel=0.1)
