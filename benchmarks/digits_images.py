"""Makes the images of digits that ship with the package: python benchmarks/digits_images.py

They are those of scikit-learn's `load_digits`, in whole grey levels 0 to 16, with the rows of the three
parts into which they are split: 40 % proxy, 40 % gold and 20 % held out, each with the same share of every
digit.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from difftilt.domains.digits.model import IMAGES


def main(out: Path) -> None:
    pixels, label = load_digits(return_X_y=True)
    grey = pixels.astype(np.uint8)
    if not np.array_equal(grey, pixels):
        raise ValueError("the grey levels of scikit-learn's digits are no whole numbers of 0 to 255")
    rest, held_out = train_test_split(range(len(label)), test_size=0.2, stratify=label, random_state=0)
    proxy, gold = train_test_split(rest, test_size=0.5, stratify=label[rest], random_state=0)
    rows = {"proxy": proxy, "gold": gold, "held_out": held_out}
    whole = {name: np.array(part, dtype=np.int16) for name, part in rows.items()}
    whole |= {"image": grey.reshape(-1, 1, 8, 8), "label": label.astype(np.uint8)}
    np.savez_compressed(out, allow_pickle=False, **whole)
    print(f"{len(label)} images, {out.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=IMAGES)
    main(**vars(parser.parse_args()))
