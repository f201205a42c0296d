"""Your own arrays: images of any size and number of channels, labels 0..K-1 or strings.

python examples/own_data.py
"""

import tempfile

import numpy as np

import bayesarch as ba

# images with a bright spot; the class is the quadrant the spot is in
rng = np.random.default_rng(0)
labels = rng.integers(0, 4, size=400)
images = rng.integers(0, 90, size=(400, 12, 10, 3), dtype=np.uint8)
for image, label in zip(images, labels, strict=True):
    row, column = 1 + 6 * (label // 2), 1 + 5 * (label % 2)
    image[row : row + 3, column : column + 3] = 250

run = ba.search(
    (images, np.array(["top left", "top right", "bottom left", "bottom right"])[labels]),
    out=tempfile.mkdtemp() + "/run",
    set={"space.channels": 4, "engine.epochs": 6, "method.alpha_lr": 0.1},
)
print(run.architecture, run.summary["selection_accuracy"])
