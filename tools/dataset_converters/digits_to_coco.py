"""Writes handwritten digits on photographs as a COCO data set, with maps for segmentation.

The digits are scikit-learn's 1797 scans of handwriting, the photographs its two sample images.
Masks are the digits' outlines, boxes fit them, train and validation digits are disjoint, and the
same seed gives the same data.
"""

import argparse
import json
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_images
from tqdm import tqdm

from mmvanilla.checkpoint import check_writable
from mmvanilla.cli.options import one_sentence_errors
from mmvanilla.errors import UsageError

CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
IMAGE_SIZE = 256
MAX_DIGITS = 5
DIGIT_SIZES = (24, 72)
MAX_OVERLAP = 0.05  # of the smaller box's area


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='folder to create, laid out like data/coco')
    parser.add_argument('--num-train', type=int, default=600, help='number of training images')
    parser.add_argument('--num-val', type=int, default=100, help='number of validation images')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def draw_digit(scan: np.ndarray, size: int) -> np.ndarray:
    """Opacity of a digit of ``size`` pixels, from 0 to 1 and soft at its edges.

    Args:
        scan: (8, 8), from 0 to 16.
        size: Side that the scan is enlarged to; a margin of an eighth goes around it.

    Returns:
        (side, side) with side = 10 / 8 size.
    """
    scan = np.pad(scan.astype(np.float32) / 16, 1)
    side = round(size * 10 / 8)
    opacity = cv2.resize(scan, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(opacity * 2 - 0.5, 0, 1)


def overlap(a: List[float], b: List[float]) -> float:
    """Intersection of two (x, y, w, h) boxes over the area of the smaller."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def vivid_colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random vivid colour (3,) that differs from the mean of the (H, W, 3) background."""
    while True:
        hsv = np.array(
            [rng.integers(180), rng.integers(180, 256), rng.integers(200, 256)], np.uint8
        )
        colour = cv2.cvtColor(hsv.reshape(1, 1, 3), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
        if np.abs(colour - background.mean((0, 1))).sum() > 250:
            return colour


def compose_image(
    photos: List[np.ndarray], scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> Tuple[np.ndarray, List[Dict], np.ndarray]:
    """One image (H, W, 3), its annotations without ids, and its map (H, W): 1 on digits."""
    photo = photos[rng.integers(len(photos))]
    y, x = (rng.integers(0, side - IMAGE_SIZE + 1) for side in photo.shape[:2])
    image = photo[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE].astype(np.float32)
    if rng.random() < 0.5:
        image = image[:, ::-1].copy()
    semantic = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    annotations: List[Dict] = []
    count = rng.integers(1, MAX_DIGITS + 1, 2).max()  # more often many than few
    while len(annotations) < count:
        index = rng.integers(len(scans))
        opacity = draw_digit(scans[index], rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
        side = len(opacity)
        left, top = (int(v) for v in rng.integers(0, IMAGE_SIZE - side + 1, 2))
        mask = (opacity >= 0.5).astype(np.uint8)
        rows, columns = np.nonzero(mask)
        box = [
            float(left + columns.min()),
            float(top + rows.min()),
            float(np.ptp(columns) + 1),
            float(np.ptp(rows) + 1),
        ]
        if any(overlap(box, other['bbox']) > MAX_OVERLAP for other in annotations):
            continue  # there is room for five: try another place
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        contours = [c for c in contours if len(c) >= 4]
        cv2.drawContours(mask, contours, -1, 1, cv2.FILLED)  # an outline has no holes
        region = image[top : top + side, left : left + side]
        colour = vivid_colour(region, rng)
        region[:] = region + opacity[..., None] * (colour - region)
        semantic[top : top + side, left : left + side][mask > 0] = 1
        annotations.append(
            dict(
                bbox=box,
                segmentation=[(c + (left, top)).astype(float).ravel().tolist() for c in contours],
                area=int(mask.sum()),
                category_id=int(labels[index]),
                iscrowd=0,
            )
        )
    return image.round().astype(np.uint8), annotations, semantic


def write_split(
    out: Path,
    split: str,
    count: int,
    scans: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Writes ``count`` images, their annotation file and their maps."""
    photos = load_sample_images().images
    (out / split).mkdir(parents=True)
    (out / 'stuffthingmaps' / split).mkdir(parents=True)
    images, annotations = [], []
    for image_id in tqdm(range(1, count + 1), desc=split, unit='image'):
        image, found, semantic = compose_image(photos, scans, labels, rng)
        name = f'{image_id:012d}.jpg'
        # OpenCV writes BGR; the photographs are RGB.
        cv2.imwrite(str(out / split / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        path = out / 'stuffthingmaps' / split / name
        cv2.imwrite(str(path.with_suffix('.png')), semantic)
        images.append(dict(id=image_id, file_name=name, width=IMAGE_SIZE, height=IMAGE_SIZE))
        for annotation in found:
            annotations.append(dict(id=len(annotations) + 1, image_id=image_id, **annotation))
    categories = [dict(id=i, name=name, supercategory='digit') for i, name in enumerate(CLASSES)]
    (out / 'annotations').mkdir(exist_ok=True)
    with open(out / f'annotations/instances_{split}.json', 'w') as file:
        json.dump(dict(images=images, annotations=annotations, categories=categories), file)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder to write to, which gets its name once it is complete.

    Raises:
        UsageError: if there is something of that name, or it cannot be made.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f'{path} exists already: remove it first, or choose another folder.')
    check_writable(str(path), is_folder=True)
    temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def main() -> None:
    args = parse_args()
    digits = load_digits()
    rng = np.random.default_rng(args.seed)
    order = rng.permutation(len(digits.images))
    cut = len(order) * 4 // 5
    splits = dict(train2017=(args.num_train, order[:cut]), val2017=(args.num_val, order[cut:]))
    with new_folder(args.out) as folder:
        for split, (count, chosen) in splits.items():
            write_split(folder, split, count, digits.images[chosen], digits.target[chosen], rng)
    print(f'Wrote {args.num_train} training and {args.num_val} validation images to {args.out}.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
