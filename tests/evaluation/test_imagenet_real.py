import json
import logging

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmpretrain.registry import METRICS
from mmpretrain.structures import DataSample

from mmvanilla import UsageError

LABELS = [[0], [], [1, 2], [3], [2]]


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / 'real.json'
    path.write_text(json.dumps(LABELS))
    return path


def evaluate(labels, predictions, names=None):
    """Evaluates predictions: the predicted class by the number of the image, from 1."""
    samples = []
    for number, predicted in predictions.items():
        name = names or f'/data/val/n01440764/ILSVRC2012_val_{number:08d}.JPEG'
        sample = DataSample(metainfo=dict(img_path=name))
        samples.append(sample.set_pred_score(torch.eye(4)[predicted]).set_gt_label(0))
    metric = METRICS.build(dict(type='mmvanilla.ImageNetReaL', labels=str(labels)))
    evaluator = Evaluator([metric])
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


@pytest.mark.parametrize(
    ('predictions', 'top1'),
    [
        ({1: 0, 3: 2, 4: 3, 5: 2}, 100.0),
        ({1: 0, 3: 1, 4: 2, 5: 1}, 50.0),
        ({1: 1, 2: 0, 3: 2}, 50.0),  # the second image has no labels, and is left out
        ({5: 2, 4: 0, 2: 1}, 50.0),  # in any order
    ],
)
def test_accuracy(predictions, top1, labels):
    assert evaluate(labels, predictions) == {'real/top1': top1}


def test_one_result_per_image(labels):
    """This lets several processes combine their results correctly."""
    metric = METRICS.build(dict(type='mmvanilla.ImageNetReaL', labels=str(labels)))
    for number in (1, 2, 3):
        name = f'ILSVRC2012_val_{number:08d}.JPEG'
        metric.process(None, [dict(img_path=name, pred_score=torch.eye(4)[0])])
    assert metric.results == [True, None, False]


def test_no_file_is_one_warning(tmp_path, monkeypatch):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr(MMLogger.get_current_instance(), 'handlers', [handler])
    assert evaluate(tmp_path / 'none.json', {1: 0}) == {}
    (message,) = [r.getMessage() for r in records if r.levelno == logging.WARNING]
    assert 'none.json' in message and 'https://github.com/google-research' in message


@pytest.mark.parametrize('content', ['[[0], [1]', '[1, 2]', '7'])
def test_wrong_file(content, tmp_path):
    (tmp_path / 'real.json').write_text(content)
    with pytest.raises(UsageError, match='real.json is not a list of label lists'):
        evaluate(tmp_path / 'real.json', {1: 0})


@pytest.mark.parametrize('name', ['a.JPEG', 'ILSVRC2012_val_00000006.JPEG'])
def test_image_of_another_data_set(name, labels):
    with pytest.raises(UsageError, match=f'{name} is not a validation image of ImageNet'):
        evaluate(labels, {1: 0}, name)
