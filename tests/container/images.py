"""Write a few digits of the test split as PNG files: `images.py FOLDER COUNT`."""

import sys
from pathlib import Path

from PIL import Image

from msn_deploy.data import load_split

folder, count = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
split = load_split("digits", "test", height_px=28, width_px=28, channels=1)
for at in range(count):
    Image.fromarray(split.images[at, ..., 0]).save(folder / f"{at:02d}_is_{split.classes[split.labels[at]]}.png")
