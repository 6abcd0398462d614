"""Writes handwritten digits as a classification data set in ImageNet's layout: split/class/image.

The digits are scikit-learn's 1797 scans of handwriting, enlarged. Four fifths are for training, the
rest for validation; the same seed gives the same data.
"""

import argparse
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from digits_to_coco import draw_digit
from sklearn.datasets import load_digits
from tqdm import tqdm

DIGIT_SIZE = 51  # with its margin, 64 pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='folder to create, laid out as data/imagenet is')
    parser.add_argument('--num-train', type=int, default=1437, help='training images, up to 1437')
    parser.add_argument('--num-val', type=int, default=360, help='validation images, up to 360')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out.exists():
        sys.exit(f'{args.out} exists already: remove it first, or choose another folder.')
    digits = load_digits()
    order = np.random.default_rng(args.seed).permutation(len(digits.images))
    cut = len(order) * 4 // 5
    temporary = args.out.with_name(args.out.name + '.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    splits = dict(train=order[:cut][: args.num_train], val=order[cut:][: args.num_val])
    for split, chosen in splits.items():
        for digit in range(10):  # also those without images: a label is a folder's place
            (temporary / split / str(digit)).mkdir(parents=True)
        for index in tqdm(chosen, desc=split, unit='image'):
            image = (255 * draw_digit(digits.images[index], DIGIT_SIZE)).round().astype(np.uint8)
            path = temporary / split / str(digits.target[index]) / f'{index:04d}.jpg'
            cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    temporary.rename(args.out)  # whole, or not there
    counts = ' and '.join(f'{len(chosen)} {split}' for split, chosen in splits.items())
    print(f'Wrote {counts} images to {args.out}.')


if __name__ == '__main__':
    main()
