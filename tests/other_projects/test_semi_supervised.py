"""Semi-supervised training (mmdet's SoftTeacher) and distillation, by our tools, with detectors."""

import pytest
import torch
from helpers.narrow_detector import CLASSES, CONFIG, narrow_options
from helpers.networks import FORMS, randomize
from helpers.programs import ROOT
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from torch.nn import functional as F

from mmvanilla import VanillaNet, switch_to_deploy
from mmvanilla.checkpoint import load_checkpoint

SOFT_TEACHER = """
_base_ = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'

model = dict(
    detector=dict(
        backbone=dict(
            _delete_=True,
            type='mmvanilla.VanillaNet',
            arch='5',
            widen_factor=1 / 64,
            out_indices=(0, 1, 2, 3),
        ),
        neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
        rpn_head=dict(in_channels=8, feat_channels=8),
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=8),
            bbox_head=dict(in_channels=8, fc_out_channels=16, num_classes=10),
        ),
    ),
    semi_train_cfg=dict(pseudo_label_initial_score_thr=0.0, cls_pseudo_thr=0.0),
)
custom_hooks = [
    dict(type='MeanTeacherHook', momentum=0.1),
    dict(type='mmvanilla.DeepTrainingHook', by_epoch=False, decay_iters=3, merge=True),
]
labeled = _base_.labeled_dataset
unlabeled = _base_.unlabeled_dataset
for each in (labeled, unlabeled):
    each.update(
        data_root='{digits}/',
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        metainfo=dict(classes='{classes}'.split(',')),
    )
small = [(128, 128), (128, 128)]
labeled.pipeline[2].scale = small
unlabeled.pipeline[2].unsup_teacher[0].scale = small
unlabeled.pipeline[2].unsup_student[0].scale = small
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(datasets=[labeled, unlabeled])
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{digits}/', metainfo=dict(classes='{classes}'.split(','))),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{digits}/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=6, val_interval=6)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=10), logger=dict(interval=1))
randomness = dict(seed=0)
"""


@pytest.mark.slow
def test_soft_teacher(digits, run_tool, capfd, tmp_path):
    config = tmp_path / 'soft_teacher.py'
    config.write_text(SOFT_TEACHER.format(digits=digits, classes=CLASSES))
    whole = tmp_path / 'whole'
    run_tool('tools/train.py', config, '--work-dir', whole)
    for i, (form, value) in {2: ('deep', 1 / 3), 4: ('merged', 1)}.items():
        saved = load_checkpoint(whole / f'iter_{i}.pth')
        assert saved['meta']['form'] == form
        found = {float(v) for k, v in saved['state_dict'].items() if '_extra_state' in k}
        assert found == ({value} if form == 'deep' else set())  # of student and teacher
    fused = load_checkpoint(whole / 'iter_6_deploy.pth')
    networks = [
        {k[len(name) :]: v for k, v in fused['state_dict'].items() if k.startswith(name)}
        for name in ('student.', 'teacher.')
    ]
    assert networks[0].keys() == networks[1].keys()
    for epoch in (2, 4):
        path = whole / f'iter_{epoch}.pth'
        run_tool('tools/train.py', config, '--work-dir', tmp_path / f'{epoch}', '--resume', path)
        again = load_checkpoint(tmp_path / f'{epoch}/iter_6.pth')['state_dict']
        assert again.keys() == load_checkpoint(whole / 'iter_6.pth')['state_dict'].keys()
    capfd.readouterr()
    for checkpoint, more in (('iter_6', ['--deploy']), ('iter_6', []), ('iter_6_deploy', [])):
        args = ('--work-dir', tmp_path / 'test', *more)
        run_tool('tools/test.py', config, whole / f'{checkpoint}.pth', *args)
    printed = capfd.readouterr().out
    assert printed.count('coco/bbox_mAP:') == 3


@MODELS.register_module(force=True)
class Distilled(SingleStageDetector):
    """A user's detector that learns the features of a frozen one."""

    def __init__(self, teacher, **kwargs):
        super().__init__(**kwargs)
        self.teacher = MODELS.build(teacher)
        self.teacher.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, batch_inputs, batch_data_samples):
        losses = super().loss(batch_inputs, batch_data_samples)
        with torch.no_grad():
            targets = self.teacher(batch_inputs)
        pairs = zip(self.backbone(batch_inputs), targets)
        losses['loss_distilled'] = sum(F.mse_loss(*pair) for pair in pairs)
        return losses


DISTILLED = """
_base_ = '{config}'
model = dict(
    type='Distilled',
    teacher=dict(
        type='mmvanilla.VanillaNet',
        arch='13',
        act_num=1,
        widen_factor=1 / 64,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='{weights}'),
    ),
)
"""


def read_weights(path, prefix):
    weights = load_checkpoint(path)['state_dict']
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


@pytest.mark.slow
@pytest.mark.parametrize('form', FORMS)
def test_distillation(form, digits, run_tool, capfd, tmp_path):
    """A student with a frozen teacher in each form: trained, resumed, tested and fused."""
    settings = dict(arch='13', act_num=1, widen_factor=1 / 64, out_indices=(1, 2, 3))
    teacher = FORMS[form](randomize(VanillaNet(**settings)))
    torch.save(teacher.state_dict(), tmp_path / 'weights.pth')
    config = tmp_path / 'distilled.py'
    weights = tmp_path / 'weights.pth'
    config.write_text(DISTILLED.format(config=ROOT / CONFIG, weights=weights))
    options = [*narrow_options(digits), 'custom_hooks.0.merge=True']
    whole = tmp_path / 'whole'
    run_tool('tools/train.py', config, '--work-dir', whole, *options)
    for epoch, value in ((1, 0.0), (2, 0.5)):
        saved = read_weights(whole / f'epoch_{epoch}.pth', 'backbone.')
        assert {float(v) for k, v in saved.items() if '_extra_state' in k} == {value}
    for epoch in (1, 2, 3):  # nothing about the teacher changes
        found = read_weights(whole / f'epoch_{epoch}.pth', 'teacher.')
        torch.testing.assert_close(found, dict(teacher.state_dict()), rtol=0, atol=0)
    for epoch in (1, 2):
        path, again = whole / f'epoch_{epoch}.pth', tmp_path / f'{epoch}'
        run_tool('tools/train.py', config, '--work-dir', again, '--resume', path, *options)
        for name in ('epoch_3.pth', 'epoch_3_deploy.pth'):
            one, other = (read_weights(folder / name, '') for folder in (whole, again))
            torch.testing.assert_close(other, one, rtol=0, atol=0)
    capfd.readouterr()
    for checkpoint, more in (('epoch_3', []), ('epoch_3', ['--deploy']), ('epoch_3_deploy', [])):
        args = ('--work-dir', tmp_path / 'test', *more, *options)
        run_tool('tools/test.py', config, whole / f'{checkpoint}.pth', *args)
    assert capfd.readouterr().out.count('coco/bbox_mAP:') == 3
    run_tool('tools/deploy.py', config, whole / 'epoch_3.pth', tmp_path / 'out', *options)
    fused = read_weights(tmp_path / 'out/distilled.pth', 'teacher.')
    torch.testing.assert_close(fused, dict(switch_to_deploy(teacher).state_dict()))
