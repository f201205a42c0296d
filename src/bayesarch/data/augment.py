"""Crops, flips and holes of a whole batch, quick where it lies.

On the CPU numpy moves whole rows where torch moves bytes one by one; on a card nothing here makes the host wait. Both
ways take the same draws and give the same numbers.
"""

import torch
from torch import Tensor

__all__ = ["crop_views", "cropped", "cut_", "flipped"]


def crop_views(padded: Tensor, pad: int) -> Tensor:
    """Return every place of a crop as a view, shape (n, 2 pad + 1, 2 pad + 1, H, W C).

    Args:
        padded: shape (n, H + 2 pad, W + 2 pad, C), contiguous.
        pad: pixels around every image.
    """
    n, height, width, channels = padded.shape
    step, places = padded.stride(), 2 * pad + 1
    size = (n, places, places, height - 2 * pad, (width - 2 * pad) * channels)
    return padded.as_strided(size, (step[0], step[1], step[2], step[1], 1))


def cropped(views: Tensor, index: Tensor, top: Tensor | int, left: Tensor | int) -> Tensor:
    """Return crops of the examples at `index` (B,) that begin at (top, left), shape (B, H, W C)."""
    if views.device.type != "cpu":
        return views[index, top, left]
    places = [place.numpy() if isinstance(place, Tensor) else place for place in (index, top, left)]
    return torch.from_numpy(views.numpy()[tuple(places)])


def flipped(pixels: Tensor, mirror: Tensor) -> Tensor:
    """Return the examples (B, H, W, C) with those of `mirror` (B, 1) turned left to right; `pixels` may be changed."""
    if pixels.device.type != "cpu":
        return torch.where(mirror[:, :, None, None], _turned(pixels), pixels)
    chosen = mirror[:, 0]
    pixels.numpy()[chosen.numpy()] = _turned(pixels[chosen]).numpy()
    return pixels


def _turned(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)  # the library's quick way for channels-last


def cut_(images: Tensor, centre: Tensor, side: int) -> None:
    """Blank a square of each example in place.

    Args:
        images: shape (B, C, H, W), channels last.
        centre: row and column in shares of the image, in [0, 1), shape (2, B, 1).
        side: of the square; an even one reaches a pixel further up and left than down and right, as it is published.
    """
    channels, height, width = images.shape[1:]
    before, after = side // 2, side - side // 2
    row, column = (centre[0] * height).floor(), (centre[1] * width).floor()
    if images.device.type == "cpu":
        corners = zip(row[:, 0].int().tolist(), column[:, 0].int().tolist(), strict=True)
        for image, (y, x) in zip(images.permute(0, 2, 3, 1).numpy(), corners, strict=True):
            image[max(y - before, 0) : y + after, max(x - before, 0) : x + after] = 0.0
        return
    from_row = torch.arange(height, device=images.device) - row
    from_column = (torch.arange(width, device=images.device) - column).repeat_interleave(channels, 1)
    rows, columns = (((d >= -before) & (d < after)).float() for d in (from_row, from_column))
    flat = images.permute(0, 2, 3, 1).flatten(2)
    flat.addcmul_(flat, torch.bmm(rows[:, :, None], columns[:, None, :]), value=-1)
