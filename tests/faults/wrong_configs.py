"""Configs with a mistake, as users make them, and what the answer must name."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from helpers.programs import ROOT

from faults.forks import run_cases, run_tool
from faults.kills import CONFIG as CLASSIFIER

DETECTOR = """
_base_ = '{root}/configs/retinanet_vanillanet13.py'
classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
model = dict(
    backbone=dict(init_cfg=None, widen_factor=1 / 64),
    neck=dict(in_channels=[16, 32, 64], out_channels=8),
    bbox_head=dict(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=10),
)
data = dict(data_root='{data}/', metainfo=dict(classes=classes))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
load = dict(type='LoadImageFromFile', backend_args=None)
boxes = dict(type='LoadAnnotations', with_bbox=True)
pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))
train_pipeline = [load, boxes, dict(type='Resize', scale=(64, 64)), pack]
train_dataloader = dict(loader, dataset=dict(data, pipeline=train_pipeline))
val_dataloader = dict(loader, dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=1)
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=0)]
"""
# What a project of MMDetection's own would write, with our backbone in it.
PROJECT = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvanilla.VanillaNet',
        arch='6',
        widen_factor=1 / 64,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[16, 32, 64], start_level=0),
    bbox_head=dict(num_classes=10),
)
data = dict(data_root='{data}/', metainfo=dict(classes=classes))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader = dict(loader, dataset=data)
val_dataloader = dict(loader, dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
"""
BASES = dict(detector=DETECTOR, project=PROJECT, classifier=CLASSIFIER)

# Part of the config: settings of it, each with words of the answer.
Settings = List[Tuple[str, str]]
BACKBONE: Settings = [
    ('widen_factr=1 / 64', 'widen_factr: did you mean widen_factor?'),
    ('act_nums=3', 'did you mean act_num?'),
    ('out_indice=(1, 2, 3)', 'did you mean out_indices?'),
    ('frozen_stage=1', 'did you mean frozen_stages?'),
    ('normeval=True', 'did you mean norm_eval?'),
    ('Deploy=True', 'did you mean deploy?'),
    ('merge=True', 'did you mean merged?'),
    ('inchannels=3', 'did you mean in_channels?'),
    ('drop_path_rate=0.1', 'no argument drop_path_rate: it takes arch,'),
    ('depth=50, num_stages=4, style="pytorch"', '_delete_=True'),
    ('act_num="3"', "act_num must be a whole number, 0 or more, got '3'"),
    ('act_num=3.0', 'act_num must be a whole number, 0 or more, got 3.0'),
    ('act_num=None', 'act_num must be a whole number, 0 or more, got None'),
    ('act_num=-1', 'act_num must be 0 or more, got -1'),
    ('widen_factor="1/64"', "widen_factor must be a number, above 0, got '1/64'"),
    ('widen_factor=None', 'widen_factor must be a number'),
    ('widen_factor=0', 'widen_factor must be above 0, got 0'),
    ('widen_factor=-0.5', 'widen_factor must be above 0, got -0.5'),
    ('widen_factor=float("nan")', 'widen_factor must be above 0, got nan'),
    ('widen_factor=float("inf")', 'widen_factor must be above 0, got inf'),
    ('widen_factor=1e-4', 'widen_factor=0.0001 leaves no channel of 512'),
    ('in_channels="3"', "in_channels must be a whole number, 1 or more, got '3'"),
    ('in_channels=0', 'in_channels must be 1 or more, got 0'),
    ('in_channels=1', 'the images have 3 channel(s), but the network has in_channels=1'),
    ('out_indices="1,2,3"', "must be a whole number or a list of whole numbers, got '1,2,3'"),
    ('out_indices=(1, 2.0, 3)', 'got (1, 2.0, 3)'),
    ('out_indices=None', 'out_indices must be'),
    ('out_indices=()', 'out_indices=() is out of range'),
    ('out_indices=(2, 3, 4)', 'the stages are 0 to 3'),
    ('out_indices=(-1,)', 'the stages are 0 to 3'),
    ('out_indices=(3, 2, 1)', 'must ascend'),
    ('out_indices=(2, 3)', 'but the backbone returns [32, 64]'),
    ('frozen_stages="1"', "frozen_stages must be a whole number, got '1'"),
    ('frozen_stages=5', 'frozen_stages=5 is out of range'),
    ('norm_eval="yes"', "norm_eval must be True or False, got 'yes'"),
    ('with_cp="True"', 'with_cp must be True or False'),
    ('norm_cfg="BN"', "norm_cfg must be a dict, got 'BN'"),
    ('norm_cfg=dict(_delete_=True, type="GN")', 'cannot be folded into a convolution'),
    ('norm_cfg=dict(type="BN", epsilon=1e-5)', 'did you mean eps?'),
    ('norm_cfg=dict(type="BN", eps="1e-5")', "eps must be a number, above 0, got '1e-5'"),
    ('arch=None', 'arch must be text or a whole number or a dict, got None'),
    ('arch="14"', "arch='14' is unknown: choose one of '5'"),
    ('arch="vanillanet-13"', 'is unknown: choose one of'),
    ('arch=dict(_delete_=True, channels=[8, 16])', 'takes channels and strides'),
    (
        'arch=dict(_delete_=True, channels=[8, 16], strides=[2, 2])',
        'arch has 2 channels and 2 strides',
    ),
    (
        'arch=dict(_delete_=True, channels=[8, "16"], strides=[2])',
        'channels of arch must be a list of whole',
    ),
    (
        'arch=dict(_delete_=True, channels=[8, 0], strides=[2])',
        'channels of arch must be 1 or more',
    ),
    (
        'arch=dict(_delete_=True, channels=[8, 16], strides=[0])',
        'strides of arch must be 1 or more',
    ),
    ('shortcut="yes"', "shortcut='yes' is unknown"),
    (
        'init_cfg="weights.pth"',
        "init_cfg must be a dict or a list of a dict or None, got 'weights.pth'",
    ),
    ('init_cfg=dict(_delete_=True, type="Pretrained", checkpoint="no.pth")', 'no.pth do not exist'),
    ('pretrained=True', 'pretrained must be text or None, got True'),
    ('type="mmvanilla.VanilaNet"', "did you mean 'mmvanilla.VanillaNet'?"),
    ('type="mmvanila.VanillaNet"', "did you mean 'mmvanilla.VanillaNet'?"),
]
HOOK: Settings = [
    ('decay_epoch=4', 'did you mean decay_epochs?'),
    ('schedul="linear"', 'did you mean schedule?'),
    ('decay_epochs="4"', "decay_epochs must be a whole number, 0 or more, got '4'"),
    ('decay_epochs=2.5', 'got 2.5'),
    ('decay_epochs=-1', 'decay_epochs must be 0 or more, got -1'),
    ('decay_epochs=None', 'got None'),
    ('schedule="cos"', "schedule='cos' is unknown: choose one of linear, cosine"),
    ('by_epoch=False', 'use decay_iters with by_epoch=False'),
    ('decay_iters=10', 'use decay_iters with by_epoch=False'),
    ('merge="yes"', 'merge must be True or False'),
    ('by_epoch=False, decay_iters="10"', 'decay_iters must be a whole number'),
]
PARAMWISE: Settings = [
    ('decay_rates=0.6', 'did you mean decay_rate?'),
    ('block_per_layer=2', 'did you mean blocks_per_layer?'),
    ('decay_rate="0.6"', "decay_rate must be a number, above 0, got '0.6'"),
    ('decay_rate=0', 'decay_rate must be above 0, got 0'),
    ('blocks_per_layer=0', 'blocks_per_layer must be 1 or more, got 0'),
    ('blocks_per_layer=2.5', 'got 2.5'),
    ('norm_decay_mult=0.0', '_delete_=True'),
]
WHOLE: Dict[str, Settings] = {
    'detector': [
        ('custom_hooks = dict(type="mmvanilla.DeepTrainingHook")', 'custom_hooks'),
        ('custom_hook = []', 'sets custom_hook, which nothing reads: did you mean custom_hooks?'),
        ('train_dataloder = dict()', 'did you mean train_dataloader?'),
        ('custom_hooks = [dict(type="mmvanilla.DeepTraningHook")]', 'DeepTrainingHook'),
        ('custom_hooks = [dict(decay_epochs=0)]', 'has no type'),
        ('custom_hooks = ["mmvanilla.DeepTrainingHook"]', 'custom_hooks of the config must be'),
        ('custom_hooks = [*_base_.custom_hooks, *_base_.custom_hooks]', 'two DeepTrainingHooks'),
        ('default_hooks = dict(checkpoint=dict(intervall=1))', 'did you mean interval?'),
        ('default_hooks = dict(checkpoint=dict(interval="1"))', 'checkpoint.interval must be'),
        ('default_hooks = dict(checkpoint=dict(max_keep_ckpts="1"))', 'max_keep_ckpts must be'),
        ('model = dict(neck=dict(out_chanels=8))', 'did you mean out_channels?'),
        ('model = dict(neck=dict(type="FPNN"))', "did you mean 'mmdet.FPN'?"),
        ('model = dict(neck=dict(in_channels=[8, 16, 32]))', 'set it to that'),
        ('model = dict(neck=dict(in_channels=16))', 'in_channels'),
        ('model = dict(neck=dict(num_outs=4))', 'num_outs'),
        ('model = dict(neck=dict(start_level=1))', 'start_level'),
        (
            'model = dict(backbone=dict(out_indices=(0, 1, 2)),'
            ' neck=dict(in_channels=[8, 16, 32]))',
            'the strides 4, 8, 16, 32, 64, but',
        ),
        ('model = dict(bbox_head=dict(in_channels=256))', 'takes 256 channels, but gets 8'),
        ('model = dict(bbox_head=dict(num_classes=80))', 'num_classes is 80, but the data of'),
        ('model = dict(bbox_head=dict(num_classes="10"))', 'num_classes'),
        ('model = dict(bbox_head=dict(num_class=10))', 'did you mean num_classes?'),
        ('model = dict(bbox_head=dict(loss_cls=dict(type="FocalLos")))', 'FocalLoss'),
        (
            'model = dict(bbox_head=dict(anchor_generator=dict(type="AnchorGen")))',
            'AnchorGenerator',
        ),
        ('model = dict(type="RetinaNt")', "did you mean 'mmdet.RetinaNet'?"),
        ('model = dict(backbones=dict())', 'did you mean backbone?'),
        ('model = dict(_delete_=True, type="RetinaNet")', 'RetinaNet needs'),
        ('model = None', 'model of the config must be'),
        ('model = dict(data_preprocessor=dict(mean=[0.0, 0.0], std=[1.0, 1.0]))', 'mean'),
        ('train_dataloader = dict(dataset=dict(type="CocoDatasets"))', "'mmdet.CocoDataset'?"),
        ('train_dataloader = dict(dataset=dict(data_root="no/"))', 'no data at no/annotations'),
        ('train_dataloader = dict(dataset=dict(ann_file="no.json"))', 'no.json'),
        ('train_dataloader = dict(dataset=dict(metainfo=dict(_delete_=True)))', 'zero, one, two'),
        ('train_dataloader = dict(dataset=dict(metainfo=dict(classes="zero")))', 'write a tuple'),
        (
            'train_dataloader = dict(dataset=dict(metainfo=dict(classes=("cat", "dog"))))',
            'cat, dog',
        ),
        (
            'names = ("Zero", *_base_.classes[1:])\n'
            'train_dataloader = dict(dataset=dict(metainfo=dict(classes=names)))',
            'but not Zero',
        ),
        (
            'train_dataloader = dict(dataset=dict(metainfo=dict(classes=("zero", "one"))))',
            'num_classes is 10, but the data of train_dataloader have 2 classes',
        ),
        ('val_dataloader = dict(dataset=dict(metainfo=dict(_delete_=True)))', 'val_dataloader'),
        ('train_dataloader = dict(batch_size=0)', 'batch_size'),
        ('train_dataloader = dict(batch_size="8")', 'batch_size'),
        ('train_dataloader = dict(num_workers=-1)', 'num_workers'),
        ('train_dataloader = dict(persistent_workers=True)', 'persistent_workers'),
        ('train_dataloader = dict(sampler=dict(type="DefaultSamplers"))', "'DefaultSampler'?"),
        ('train_dataloader = None', 'it has no train_dataloader'),
        ('train_dataloader = dict(dataset=dict(pipeline=[dict(type="LoadImage")]))', 'LoadImage'),
        (
            'train_dataloader = dict(dataset=dict(pipeline=[dict(type="Resize", scales=(9, 9))]))',
            'did you mean scale?',
        ),
        ('train_dataloader = dict(dataset=dict(pipelines=[]))', 'did you mean pipeline?'),
        ('train_dataloader = dict(dataset=dict(filter_cfg=dict(min_size=9999)))', 'filter'),
        ('train_cfg = dict(max_epochs="1")', 'max_epochs'),
        ('train_cfg = dict(max_epoch=1)', 'max_epoch'),
        ('train_cfg = dict(type="EpochTrainLoop")', 'EpochBasedTrainLoop'),
        ('train_cfg = dict(val_interval=0)', 'val_interval'),
        ('val_evaluator = dict(metric="bboxes")', 'bboxes'),
        ('val_evaluator = dict(type="CocoMetrics")', "did you mean 'mmdet.CocoMetric'?"),
        ('val_evaluator = dict(ann_file="no.json")', 'no data at no.json'),
        ('optim_wrapper = dict(optimizer=dict(type="AdmW"))', 'AdamW'),
        ('optim_wrapper = dict(optimizer=dict(lr="1e-4"))', 'lr'),
        ('optim_wrapper = dict(optimizer=dict(learning_rate=1e-4))', 'learning_rate'),
        ('optim_wrapper = dict(_delete_=True, type="OptimWrapper")', 'optimizer'),
        ('optim_wrapper = dict(type="OptimWraper")', "did you mean 'OptimWrapper'?"),
        ('optim_wrapper = dict(clip_grad=10)', 'clip_grad'),
        (
            'optim_wrapper = dict(constructor="mmvanilla.LayerDecayOptimWrapperConstructr")',
            "'mmvanilla.LayerDecayOptimWrapperConstructor'?",
        ),
        ('param_scheduler = [dict(type="CosineLR", T_max=1)]', 'did you mean '),
        ('param_scheduler = [dict(type="MultiStepLR", milestone=[1])]', 'did you mean milestones?'),
        ('param_scheduler = [dict(type="MultiStepLR")]', "MultiStepLR needs 'milestones'"),
        ('visualizer = dict(type="DetLocalVisualiser")', 'DetLocalVisualizer'),
        ('default_scope = "mmdett"', "did you mean 'mmdet'?"),
        ('load_from = "no.pth"', 'no.pth does not exist'),
        ('load_from = "{data}/annotations/instances_val2017.json"', 'not a checkpoint'),
        ('load_from = True', 'load_from of the config must be text or None, got True'),
        ('resume = "yes"', 'resume of the config must be True or False'),
        ('model = dict(', 'cannot be read: '),
        ('model = dict(backbone=dict(act_num=n))', 'n'),
        ('_base_ = "none.py"', 'none.py'),
        ('_base_ = "mmdet::retinanet/none.py"', 'none.py'),
        ('_base_ = "mmdett::retinanet/retinanet_r50_fpn_1x_coco.py"', 'mmdett'),
        ('custom_imports = dict(imports=["no_such_module"])', 'no_such_module'),
        ('custom_imports = dict(import_=["mmvanilla"])', 'import'),
    ],
    'project': [
        ('model = dict(neck=dict(start_level=1))', 'start_level'),
        ('model = dict(bbox_head=dict(num_classes=80))', 'set num_classes of the heads to 10'),
        ('val_dataloader = dict(dataset=dict(metainfo=dict(_delete_=True)))', 'val_dataloader'),
        ('model = dict(backbone=dict(depth=50, style="pytorch"))', '_delete_=True'),
        (
            'custom_hooks = [dict(type="mmvanilla.DeepTrainingHook", decay_epoch=0)]',
            'decay_epochs?',
        ),
    ],
    'classifier': [
        ('model = dict(head=dict(num_classes=3))', 'num_classes'),
        ('model = dict(head=dict(in_channels=4096))', 'takes 4096 channels, but gets 64'),
        ('model = dict(head=dict(dropout_rate=0.1))', 'did you mean dropout?'),
        ('model = dict(head=dict(dropout=2.0))', 'dropout must be from 0 to 1, got 2.0'),
        ('model = dict(head=dict(num_classes="10"))', 'num_classes must be a whole number'),
        (
            'default_hooks = dict(checkpoint=dict(save_best="acc/top1"))',
            "did you mean 'accuracy/top1'",
        ),
        ('val_evaluator = dict(topk=(1, 50))', 'topk'),
        ('val_evaluator = dict(topks=1)', 'did you mean topk?'),
        ('train_dataloader = dict(dataset=dict(data_prefix="no"))', 'no data at'),
        (
            'train_dataloader = dict(dataset=dict(metainfo=dict(classes=["a", "b"])))',
            'specified classes (2)',
        ),
        ('train_dataloader = dict(dataset=dict(type="CustomDatasets"))', 'CustomDataset'),
        ('optim_wrapper = dict(optimizer=dict(type="Lam"))', 'Lamb'),
    ],
}


def all_configs() -> List[Tuple[str, str, str]]:
    """The base, the wrong code and words of the answer of each."""
    configs = [('detector', f'model = dict(backbone=dict({code}))', w) for code, w in BACKBONE]
    hook = 'custom_hooks = [dict(type="mmvanilla.DeepTrainingHook", {})]'
    configs += [('detector', hook.format(code), words) for code, words in HOOK]
    wrapper = 'optim_wrapper = dict(paramwise_cfg=dict({}))'
    configs += [('detector', wrapper.format(code), words) for code, words in PARAMWISE]
    return configs + [(base, code, words) for base in WHOLE for code, words in WHOLE[base]]


def _change(content: dict, change: Callable[[dict], Any]) -> str:
    content = json.loads(json.dumps(content))
    changed = change(content)
    return json.dumps(content if changed is None else changed)


# Changes to a right annotation file, and words of the answer.
ANNOTATIONS: Dict[str, Tuple[Callable[[dict], Any], str]] = {
    'a list': (lambda c: [c], 'it holds a list'),
    'no annotations': (lambda c: c.pop('annotations') and None, 'it has no list of annotations'),
    'no categories': (lambda c: c.pop('categories') and None, 'it has no list of categories'),
    'no images': (lambda c: c.pop('images') and None, 'it has no list of images'),
    'a box of three': (lambda c: c['annotations'][0]['bbox'].pop() and None, 'annotations[0] has'),
    'a box of text': (lambda c: c['annotations'][1].update(bbox=['a'] * 4), 'annotations[1] has'),
    'no box': (lambda c: c['annotations'][2].pop('bbox') and None, 'annotations[2] has no bbox'),
    'no category': (lambda c: c['annotations'][0].pop('category_id') and None, 'no category_id'),
    'no file name': (lambda c: c['images'][3].pop('file_name') and None, 'images[3] has no file_n'),
    'no height': (lambda c: c['images'][3].pop('height') and None, 'images[3] has no height'),
    'no image id': (lambda c: c['annotations'][0].pop('image_id') and None, 'has no image_id'),
    'no name': (lambda c: c['categories'][0].pop('name') and None, 'categories[0] has no name'),
    'another order': (lambda c: c['categories'].reverse(), 'by which MMDetection numbers them'),
    'no annotation of any': (lambda c: c.update(annotations=[]), 'no image of'),
}


def wrong_config(place: Path, base: str, code: str, data: Path) -> Dict[str, Any]:
    text = BASES[base].format(root=ROOT, data=data)
    (place / 'base.py').write_text(text)
    config = place / 'config.py'
    code = code.replace('{data}', str(data))
    config.write_text(code if '_base_ =' in code else f"_base_ = 'base.py'\n{code}\n")
    return _train(place, config)


def wrong_data(place: Path, data: Path, content: Any, image: Any = None) -> Dict[str, Any]:
    """A run on data with another annotation file, or with another first image."""
    shutil.copytree(data, place / 'data')
    if content is not None:
        (place / 'data/annotations/instances_train2017.json').write_text(content)
    if image is not None:
        for path in (place / 'data/train2017').iterdir():
            image(path)
    config = place / 'config.py'
    config.write_text(DETECTOR.format(root=ROOT, data=place / 'data'))
    return _train(place, config)


def _train(place: Path, config: Path) -> Dict[str, Any]:
    outcome = run_tool('train', config, '--work-dir', place / 'run')
    result = dict(code=outcome.code, sentence=outcome.sentence, output=outcome.output[-1500:])
    result['tracebacks'] = 'Traceback' in outcome.output
    result['checkpoints'] = [path.name for path in (place / 'run').glob('*.pth')]
    shutil.rmtree(place)
    return result


IMAGES: Dict[str, Callable[[Path], Any]] = {
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('this is no image'),
    'cut': lambda path: path.write_bytes(path.read_bytes()[:20]),
    'missing': lambda path: path.unlink(),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
}


def run_all(data: Path, folders: Path, folder: Path) -> Dict[str, int]:
    """All wrong configs, annotations and images; returns counts."""
    right = json.loads((data / 'annotations/instances_train2017.json').read_text())
    cases, words = {}, {}
    for base, code, expected in all_configs():
        name = f'{base}: {code}'
        where = folders if base == 'classifier' else data
        cases[name] = partial(wrong_config, base=base, code=code, data=where)
        words[name] = expected
    texts = {name: (_change(right, change), w) for name, (change, w) in ANNOTATIONS.items()}
    texts['cut'] = json.dumps(right)[:-20], 'it is no JSON file'
    texts['empty'] = '', 'it is no JSON file'
    for name, (content, expected) in texts.items():
        cases[f'annotations: {name}'] = partial(wrong_data, data=data, content=content)
        words[f'annotations: {name}'] = expected
    for name, image in IMAGES.items():
        cases[f'images: {name}'] = partial(wrong_data, data=data, content=None, image=image)
        words[f'images: {name}'] = 'train2017/'
    counts = dict(cases=0, sentence=0, tracebacks=0, unclear=0, accepted=0)
    for name, found in run_cases(cases, folder):
        counts['cases'] += 1
        if isinstance(found, str) or found['tracebacks'] or found['code'] not in (0, 1):
            kind = 'tracebacks'
        elif found['code'] == 0:
            kind = 'accepted'
        elif words[name] not in found['sentence']:
            kind = 'unclear'
        else:
            kind = 'sentence'
        counts[kind] += 1
        if kind != 'sentence':
            shown = found if isinstance(found, str) else found['sentence'] or found['output']
            print(f'wrong config {name}: {kind}: {shown}', flush=True)
    return counts
