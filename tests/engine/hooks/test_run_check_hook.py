import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.own_folder import copy_as_own
from helpers.small_run import Classifier, make_runner
from torch import nn

from mmvanilla import UsageError, VanillaNet
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.engine import RunCheckHook
from mmvanilla.engine.hooks.run_check_hook import (
    _check_boxes,
    _check_classes,
    _check_images,
    _check_order,
    _check_strides,
)

HOOKS = [dict(type='mmvanilla.RunCheckHook')]


class Diverging(Classifier):
    """Its loss is infinite from an iteration on, and if it is ``bad``, so are its weights."""

    def __init__(self, at, bad):
        super().__init__()
        self.at, self.bad, self.count = at, bad, 0

    def forward(self, inputs, labels, mode='tensor'):
        losses = super().forward(inputs, labels, mode)
        if mode == 'loss':
            self.count += 1
            if self.count == self.at:
                losses['loss'] = losses['loss'] * 0 + float('inf')
                if self.bad:
                    losses['loss'] = losses['loss'] * losses['loss'].detach() * self.head.bias[0]
        return losses


def test_a_run_that_diverges_ends_there(tmp_path):
    runner = make_runner(tmp_path, hooks=HOOKS, model=Diverging(4, bad=True))
    with pytest.raises(UsageError, match=r'diverged: at iteration 4 .* NaN in .*epoch_1\.pth'):
        runner.train()
    load_checkpoint(tmp_path / 'epoch_1.pth')  # with finite weights
    assert not (tmp_path / 'epoch_2.pth').exists()


def test_a_loss_that_leaves_the_weights_alone(tmp_path):
    runner = make_runner(tmp_path, epochs=1, hooks=HOOKS, model=Diverging(1, bad=False))
    runner.train()
    assert (tmp_path / 'epoch_1.pth').exists()
    (log,) = tmp_path.glob('*/*.log')
    assert 'The loss is inf at iteration 1.' in log.read_text()


def test_such_weights_are_not_written(tmp_path):
    runner = make_runner(tmp_path, epochs=1, hooks=HOOKS)
    runner.model.backbone.stem.conv.norm1.running_var.fill_(-9)
    with pytest.raises(UsageError, match='a negative variance in backbone.stem.conv.norm1'):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))


class Features(nn.Module):
    def __init__(self, strides):
        super().__init__()
        self.backbone = VanillaNet('5', widen_factor=1 / 64)
        self.strides = strides

    def extract_feat(self, x):
        assert not self.training
        return [x[..., ::stride, ::stride] for stride in self.strides]


@pytest.mark.parametrize(
    ('features', 'anchors', 'fits'),
    [
        ([8, 16], [8, 16], True),
        ([8, 16], [(8, 8), (16, 16)], True),
        ([16, 32], [8, 16], False),
        ([8], [8, 16], False),
        (['wrong'], [8], True),  # training will say what does not fit
    ],
)
def test_strides(features, anchors, fits):
    model = Features(features)
    model.bbox_head = nn.Module()
    model.bbox_head.prior_generator = SimpleNamespace(strides=anchors)
    if fits:
        _check_strides(model)
    else:
        with pytest.raises(UsageError, match='have the strides'):
            _check_strides(model)
    assert model.training


def test_weights_for_a_part_of_the_backbone(tmp_path):
    """mmengine would only log what is missing."""
    weights = Classifier().state_dict()
    del weights['backbone.blocks.1.act.conv.weight'], weights['backbone.blocks.1.act.norm.weight']
    for name in [name for name in weights if name.startswith('backbone.blocks.0.')]:
        del weights[name]
    torch.save(dict(state_dict=weights), tmp_path / 'part.pth')
    runner = make_runner(tmp_path / 'run', hooks=HOOKS, load_from=str(tmp_path / 'part.pth'))
    with pytest.raises(UsageError, match='does not fit model.backbone: missing: blocks.0'):
        runner.train()
    assert isinstance(RunCheckHook(), RunCheckHook)


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
@pytest.mark.parametrize('kind', ['missing', 'another shape'])
def test_no_loader_loads_a_part(loader, kind):
    from mmengine.runner.checkpoint import load_state_dict

    model = Classifier()
    weights = model.state_dict()
    if kind == 'missing':
        weights = {k: v for k, v in weights.items() if not k.startswith('backbone.stem.act.')}
    else:
        weights['backbone.blocks.0.conv.conv1.weight'] = torch.ones(3, 3, 1, 1)
    if loader == 'torch' and kind == 'missing':  # which tells the caller
        missing = model.load_state_dict(weights, strict=False).missing_keys
        assert 'backbone.stem.act.conv.weight' in missing
        return
    with pytest.raises((UsageError, RuntimeError), match=f'{kind}|size mismatch'):
        if loader == 'torch':
            model.load_state_dict(weights, strict=False)
        else:
            load_state_dict(model, weights)


def test_resuming_with_another_model_or_optimizer(tmp_path):
    """mmengine would go on with random weights for what does not fit, or fail later."""
    make_runner(tmp_path / 'one', epochs=1).train()
    resume = dict(hooks=HOOKS, load_from=str(tmp_path / 'one/epoch_1.pth'), resume=True)
    model = Classifier()
    model.head = nn.Linear(64, 3)
    runner = make_runner(tmp_path / 'two', model=model, **resume)
    with pytest.raises(UsageError, match=r'of another config \(head.weight \(2, 64\) instead of'):
        runner.train()
    runner = make_runner(tmp_path / 'three', **resume)
    runner.optim_wrapper['optimizer'] = dict(type='AdamW', lr=0.01)
    with pytest.raises(UsageError, match=r'of another config \(its optimizer\)'):
        runner.train()


def test_a_file_in_which_nothing_fits(tmp_path):
    torch.save(dict(state_dict={'layer1.0.weight': torch.ones(3)}), tmp_path / 'other.pth')
    runner = make_runner(tmp_path / 'run', hooks=HOOKS, load_from=str(tmp_path / 'other.pth'))
    with pytest.raises(UsageError, match='other.pth holds no weights of model.backbone'):
        runner.train()


class CocoDataset:
    ann_file = 'a.json'
    metainfo = dict(classes=('cat', 'dog'))
    cat_ids = (1, 2)

    def __init__(self, boxes):
        self.boxes = boxes

    def __len__(self):
        return len(self.boxes)

    def get_data_info(self, index):
        return dict(instances=self.boxes[index])


def test_data_without_boxes():
    _check_boxes(CocoDataset([[], [dict(ignore_flag=1), dict(ignore_flag=0)]]))
    with pytest.raises(UsageError, match='no image of a.json has a box'):
        _check_boxes(CocoDataset([[]] * 1000))
    with pytest.raises(UsageError, match='iscrowd 0'):
        _check_boxes(CocoDataset([[dict(ignore_flag=1)]]))


@pytest.mark.parametrize('data', ['train', 'val'])
@pytest.mark.parametrize('metric', ['train', 'val', None])
def test_metrics_have_the_images(data, metric, digits, tmp_path):
    from mmdet.registry import DATASETS, METRICS

    folder = copy_as_own(digits, tmp_path / 'own')
    files = {each: str(folder / f'annotations/{each}.json') for each in ('train', 'val')}
    names = [each['name'] for each in json.loads(Path(files['val']).read_text())['categories']]
    dataset = DATASETS.build(
        dict(
            type='mmdet.CocoDataset',
            ann_file=files[data],
            data_prefix=dict(img=str(folder / 'images')),
            metainfo=dict(classes=names),
        )
    )
    metric = METRICS.build(dict(type='mmdet.CocoMetric', ann_file=files.get(metric), metric='bbox'))
    wrong = metric._coco_api is not None and len(metric._coco_api.imgs) != len(dataset)
    if wrong:
        message = f'val_evaluator has other images than val_dataloader, which has {data}_0.* set'
        with pytest.raises(UsageError, match=message):
            _check_images(dataset, metric, 'val')
    else:
        _check_images(dataset, metric, 'val')


@pytest.mark.parametrize(
    ('names', 'fits'),
    [(['cat', 'dog'], True), (['cat'], True), (['dog'], False), (['dog', 'cat'], False)],
)
def test_order_of_classes(names, fits):
    data = SimpleNamespace(metainfo=dict(classes=names))
    if fits:
        _check_order(data, CocoDataset([]), 'val_dataloader')
    else:
        with pytest.raises(UsageError, match='val_dataloader: class 0 is dog, but cat in train'):
            _check_order(data, CocoDataset([]), 'val_dataloader')


@pytest.mark.parametrize(
    ('head', 'number', 'fits'),
    [
        ('bbox_head', 2, True),
        ('bbox_head', 80, False),
        ('roi_head', 80, True),  # not a part with classes
        ('backbone', -1, True),
        ('decode_head', 3, False),
    ],
)
def test_numbers_of_classes(head, number, fits):
    model = nn.Module()
    setattr(model, head, nn.Module())
    getattr(model, head).num_classes = number
    if fits:
        _check_classes(CocoDataset([[]]), 'train_dataloader', model)
    else:
        with pytest.raises(UsageError, match=f'model.{head}.num_classes is {number}, but the data'):
            _check_classes(CocoDataset([[]]), 'train_dataloader', model)


def test_strides_of_regions():
    model = Features([4, 8])
    model.rpn_head, model.roi_head = nn.Module(), nn.Module()
    model.rpn_head.prior_generator = SimpleNamespace(strides=[4, 8])
    model.roi_head.bbox_roi_extractor = nn.ModuleList([nn.Module()])
    model.roi_head.bbox_roi_extractor[0].featmap_strides = [4]
    _check_strides(model)
    model.roi_head.bbox_roi_extractor[0].featmap_strides = [8]
    with pytest.raises(UsageError, match=r'featmap_strides is \[8\], but .* strides 4, 8'):
        _check_strides(model)
