"""A whole training, step by step, against a recorded one of the authors' implementation.

The recording is of 240 steps in float64: λ goes from 0 to 1 over the first 160, by iterations.
"""

import pytest
import torch
from helpers.programs import ROOT
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

from mmvanilla import merge_deep_convs, switch_to_deploy
from mmvanilla.engine.hooks import deep_training_hook
from mmvanilla.models import deep_conv

# Rounding differs between CPUs, and training amplifies it: to 3e-8 in the logits where measured.
TOLERANCE = 3e-7


@pytest.fixture(scope='module')
def recorded():
    return torch.load(ROOT / 'tests/data/trajectory_6_n3.pt', weights_only=True)


class Batches(torch.utils.data.Dataset):
    """The batches of the recording, (24, 3, 64, 64) each."""

    def __init__(self, recorded):
        self.images = recorded['images_8x8']
        self.labels, self.batches = recorded['labels'], recorded['batches']

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, step):
        indices = self.batches[step]
        return dict(
            inputs=enlarge(self.images[indices]),
            data_samples=[DataSample().set_gt_label(label) for label in self.labels[indices]],
        )


def enlarge(images):
    """Digits (N, 8, 8) as network inputs (N, 3, 64, 64)."""
    images = images.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return images[:, None].expand(-1, 3, -1, -1).contiguous()


class Losses(Hook):
    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'])


def train(recorded, work_dir, norm_cfg):
    """Trains as the recording did; returns the network, and the loss (240,) of every step."""
    model = ImageClassifier(
        backbone=dict(
            type='mmvanilla.VanillaNet',
            arch=dict(channels=recorded['dims'], strides=recorded['strides']),
            act_num=recorded['act_num'],
            norm_cfg=norm_cfg,
        ),
        head=dict(
            type='mmvanilla.VanillaNetClsHead',
            num_classes=recorded['num_classes'],
            in_channels=recorded['dims'][-1],
            dropout=0,
            norm_cfg=norm_cfg,
            loss=dict(type='CrossEntropyLoss'),
        ),
        data_preprocessor=BaseDataPreprocessor(),  # mmpretrain's makes float32 of float64
    ).double()
    initial = work_dir / 'initial.pth'
    torch.save(dict(model=recorded['initial_state_dict']), initial)  # as the authors' files are
    batches = dict(
        batch_size=1,  # of the recording's
        num_workers=0,
        dataset=Batches(recorded),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=lambda items: items[0],
    )
    optimizer = dict(type='AdamW', lr=recorded['lr'], weight_decay=recorded['weight_decay'])
    seen = Losses()
    Runner(
        model=model,
        load_from=str(initial),
        work_dir=str(work_dir),
        train_dataloader=batches,
        train_cfg=dict(by_epoch=False, max_iters=len(recorded['batches'])),
        optim_wrapper=dict(optimizer=optimizer),
        custom_hooks=[
            dict(type='mmvanilla.DeepTrainingHook', by_epoch=False, decay_iters=160),
            seen,
        ],
        default_hooks=dict(checkpoint=None),
        experiment_name=str(work_dir),
        log_level='ERROR',
    ).train()
    return model.eval(), torch.stack(seen.losses)


def deviations(recorded, work_dir, norm_cfg=dict(type='BN')):
    """The largest differences from the recording: of losses, and of the final logits."""
    model, losses = train(recorded, work_dir, norm_cfg)
    images = enlarge(recorded['images_8x8'])
    final, fused = recorded['final_logits'], recorded['final_deploy_logits']
    with torch.no_grad():
        pairs = dict(
            losses=(losses, recorded['losses']),
            deep=(model(images), final),
            merged=(merge_deep_convs(model)(images), final),
            fused=(switch_to_deploy(model)(images), fused),
        )
    return {
        name: (found - expected).abs().max().item() for name, (found, expected) in pairs.items()
    }


def test_trains_as_the_authors_do(recorded, tmp_path):
    found = deviations(recorded, tmp_path)
    assert all(value < TOLERANCE for value in found.values()), found  # NaN fails too


def late_lambda(monkeypatch):
    right = deep_training_hook.deep_training_lambda
    late = lambda step, *args: right(max(step - 1, 0), *args)  # noqa: E731
    monkeypatch.setattr(deep_training_hook, 'deep_training_lambda', late)


def inexact_merging(monkeypatch):
    right = deep_conv.merge_convs

    def inexact(*args):
        weight, bias = right(*args)
        return weight * (1 + 1e-6), bias

    monkeypatch.setattr(deep_conv, 'merge_convs', inexact)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('mistake', 'norm_cfg', 'noticed'),
    [
        (late_lambda, {}, ['losses', 'deep', 'merged', 'fused']),
        (None, dict(eps=1e-5), ['losses', 'deep', 'merged', 'fused']),
        (None, dict(momentum=0.09), ['deep', 'merged', 'fused']),
        (inexact_merging, {}, ['merged', 'fused']),
    ],
)
def test_mistakes_are_noticed(mistake, norm_cfg, noticed, recorded, tmp_path, monkeypatch):
    if mistake:
        mistake(monkeypatch)
    found = deviations(recorded, tmp_path, dict(type='BN', **norm_cfg))
    assert [name for name, value in found.items() if not value < TOLERANCE] == noticed, found
