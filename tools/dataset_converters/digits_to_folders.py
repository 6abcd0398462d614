"""Writes handwritten digits as a classification data set in ImageNet's layout: split/class/image.

The digits are scikit-learn's 1797 scans of handwriting, enlarged. Four fifths are for training, the
rest for validation; the same seed gives the same data. With --cluttered each image has a digit of
random size and place, on a dimmed photograph, among pieces of other digits, with noise.
"""

import argparse
from pathlib import Path
from typing import List

import cv2
import numpy as np
from digits_to_coco import draw_digit, new_folder
from sklearn.datasets import load_digits, load_sample_images
from tqdm import tqdm

from mmvanilla.cli.options import one_sentence_errors

IMAGE_SIZE = 64
DIGIT_SIZE = 51  # with its margin, 64 pixels
CLUTTERED_SIZES = (28, 44)
GREYS = (150, 255)
DIMMED = 0.5
PIECES = 6
PIECE_SIZE = 12
NOISE = 30  # standard deviation, of 255


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='folder to create, laid out like data/imagenet')
    parser.add_argument('--num-train', type=int, default=1437, help='number of training images')
    parser.add_argument('--num-val', type=int, default=360, help='number of validation images')
    parser.add_argument('--cluttered', action='store_true', help='digits that are hard to read')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if not args.cluttered and (args.num_train > 1437 or args.num_val > 360):
        parser.error('there are 1437 training and 360 validation digits: add --cluttered for more')
    return args


def clean_image(scan: np.ndarray) -> np.ndarray:
    """A scan (8, 8) as an image (64, 64)."""
    return (255 * draw_digit(scan, DIGIT_SIZE)).round().astype(np.uint8)


def paste(image: np.ndarray, opacity: np.ndarray, rng: np.random.Generator) -> None:
    """Pastes a light grey shape of this opacity (h, w) at a random place of an image (H, W, 3)."""
    top, left = (int(rng.integers(0, IMAGE_SIZE - side + 1)) for side in opacity.shape)
    region = image[top : top + opacity.shape[0], left : left + opacity.shape[1]]
    region += opacity[..., None] * (rng.uniform(*GREYS) - region)


def cluttered_image(
    scan: np.ndarray, others: np.ndarray, photos: List[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """An image (64, 64, 3) of a scan (8, 8) on a photograph, among pieces of others (N, 8, 8)."""
    photo = photos[rng.integers(len(photos))]
    y, x = (rng.integers(0, side - IMAGE_SIZE + 1) for side in photo.shape[:2])
    image = photo[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] * np.float32(DIMMED)
    for other in others[rng.integers(len(others), size=PIECES)]:
        digit = draw_digit(other, rng.integers(*CLUTTERED_SIZES))
        top, left = (rng.integers(0, side - PIECE_SIZE) for side in digit.shape)
        paste(image, digit[top : top + PIECE_SIZE, left : left + PIECE_SIZE], rng)
    paste(image, draw_digit(scan, rng.integers(*CLUTTERED_SIZES)), rng)
    image += rng.normal(0, NOISE, image.shape)
    return image.clip(0, 255).round().astype(np.uint8)


def main() -> None:
    args = parse_args()
    digits = load_digits()
    rng = np.random.default_rng(args.seed)
    order = rng.permutation(len(digits.images))
    photos = [photo[..., ::-1] for photo in load_sample_images().images]  # RGB; OpenCV writes BGR
    cut = len(order) * 4 // 5
    splits = dict(train=(order[:cut], args.num_train), val=(order[cut:], args.num_val))
    with new_folder(args.out) as folder:
        for split, (scans, count) in splits.items():
            for digit in range(10):  # empty folders too: labels are the folders' positions
                (folder / split / str(digit)).mkdir(parents=True)
            for number in tqdm(range(count), desc=split, unit='image'):
                index = scans[number % len(scans)]
                scan = digits.images[index]
                image = (
                    cluttered_image(scan, digits.images[scans], photos, rng)
                    if args.cluttered
                    else clean_image(scan)
                )
                name = f'{index:04d}_{number // len(scans)}.jpg'
                path = folder / split / str(digits.target[index]) / name
                cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    print(f'Wrote {args.num_train} train and {args.num_val} val images to {args.out}.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
