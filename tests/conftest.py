import json
import os
from functools import partial

os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')  # the tests run the same with and without a GPU

import cv2
import numpy as np
import pytest
import torch
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.programs import forget_runs, run_in_process, run_python


@pytest.fixture(autouse=True)
def no_earlier_run():
    forget_runs()


@pytest.fixture(autouse=True)
def same_random_numbers():
    """The random numbers of a test do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def run_tool(monkeypatch):
    return partial(run_in_process, monkeypatch)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A small generated data set, laid out like data/coco."""
    folder = tmp_path_factory.mktemp('data') / 'digits'
    run_python(
        'tools/dataset_converters/digits_to_coco.py', folder, '--num-train=16', '--num-val=4'
    )
    return folder


@pytest.fixture(scope='session')
def trained(digits, tmp_path_factory):
    """A complete run of the main config: three epochs of four iterations, with λ = 0, 0.5, 1."""
    work_dir = tmp_path_factory.mktemp('run') / 'whole'
    # --resume with nothing to resume from, as in a job that is restarted whenever it dies.
    command = ['tools/train.py', CONFIG, '--work-dir', work_dir, '--resume']
    output = run_python(*command, *narrow_options(digits))
    assert f'No checkpoint to resume from in {work_dir}: starting' in output
    return work_dir


@pytest.fixture(scope='session')
def imagenet(tmp_path_factory):
    """A tiny folder in ImageNet's layout, with real.json: the second image has no ReaL labels."""
    folder = tmp_path_factory.mktemp('data') / 'imagenet'
    rng = np.random.default_rng(0)
    number = 0
    for split, count in (('train', 4), ('val', 2)):
        for wnid in ('n01440764', 'n01443537'):
            (folder / split / wnid).mkdir(parents=True)
            for _ in range(count):
                number += split == 'val'
                name = f'ILSVRC2012_val_{number:08d}' if split == 'val' else f'{wnid}_{_}'
                image = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
                image = cv2.resize(image, (320, 240), interpolation=cv2.INTER_CUBIC)
                cv2.imwrite(str(folder / split / wnid / f'{name}.JPEG'), image)
    (folder / 'real.json').write_text(json.dumps([[0], [], [1, 7], [7]]))
    return folder
