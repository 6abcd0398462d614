"""The guide to own data: its config trains, and its mistakes get the sentences that it prints."""

import json
import re
import shutil

import pytest
from helpers.config_options import loader_options
from helpers.own_folder import copy_as_own
from helpers.programs import ROOT, fail

PAGE = (ROOT / 'docs/own_data.md').read_text()
(CONFIG,) = re.findall(r'```python\n(.*?)```', PAGE, re.S)
SENTENCES = dict(re.findall(r'^\| (.*) \| (`.*`) \|$', PAGE, re.M))
# Smaller, for a test.
SMALL = """
model['backbone'].update(widen_factor=1 / 64)
model['neck'].update(in_channels=[16, 32, 64], out_channels=8)
model['bbox_head'].update(in_channels=8, feat_channels=8, stacked_convs=1)
"""


@pytest.fixture
def train(digits, tmp_path):
    """Returns the arguments of a training run on three kinds of digits, with the guide's names."""

    def rename(content):
        names = ['cat', 'dog', 'horse']
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(names)]
        content['annotations'] = [a for a in content['annotations'] if a['category_id'] < 3]

    copy_as_own(digits, tmp_path / 'data/animals', rename)

    def arguments(change=''):
        config = tmp_path / 'animals.py'
        root = f"root = '{tmp_path}/data/animals/'"
        config.write_text(CONFIG.replace("root = 'data/animals/'", root) + SMALL + change)
        options = ['train_cfg.max_epochs=1', *loader_options()]
        options += ['train_dataloader.dataset.pipeline.2.scale=(64,64)']
        options += ['val_dataloader.dataset.pipeline.1.scale=(64,64)']
        return [config, f'--work-dir={tmp_path}/run', '--cfg-options', *options]

    return arguments


@pytest.mark.slow
def test_it_trains(train, run_tool, tmp_path):
    run_tool('tools/train.py', *train())
    assert (tmp_path / 'run/epoch_1.pth').exists()


def cut(folder):
    (folder / 'annotations/train.json').write_text('{"images": [')


def lose_a_box(folder):
    path = folder / 'annotations/train.json'
    content = json.loads(path.read_text())
    content['annotations'].insert(7, dict(id=9999, image_id=content['images'][0]['id']))
    content['annotations'][7].update(category_id=0, area=9, iscrowd=0)
    path.write_text(json.dumps(content))


def empty_images(folder):
    for path in (folder / 'images').iterdir():
        path.write_bytes(b'')


# Part of the mistake as the page names it, and how it is made: code, or a change to the data.
MISTAKES = [
    ('num_classes=80', "model['bbox_head']['num_classes'] = 80"),
    ('no `metainfo`', "train_dataloader['dataset'].pop('metainfo')"),
    ('of the evaluator', "val_evaluator['ann_file'] = root + 'annotations/train.json'"),
    (
        'another order',
        'for part in (train_dataloader, val_dataloader):\n'
        "    part['dataset']['metainfo'] = dict(classes=('dog', 'cat', 'horse'))",
    ),
    ('without the comma', "train_dataloader['dataset']['metainfo'] = dict(classes=('cat'))"),
    ('start_level=0', "model['neck']['start_level'] = 1"),
    ('`_delete_=True` forgotten', "model['backbone'].pop('_delete_')"),
    ('a misspelt setting', "model['backbone']['widen_factr'] = 1"),
    ('act_num', "model['backbone']['act_num'] = '3'"),
    ('the neck has other', "model['neck']['in_channels'] = [512, 1024, 2048]"),
    ('a wrong path', lambda folder: shutil.rmtree(folder / 'annotations')),
    ('an annotation file', cut),
    ('an annotation file', lose_a_box),
    ('images are empty', empty_images),
    ('custom_hook', 'custom_hook = custom_hooks'),
]


@pytest.mark.slow
@pytest.mark.parametrize(('row', 'change'), MISTAKES)
def test_mistakes_get_their_sentences(row, change, train, monkeypatch, tmp_path):
    if callable(change):
        change(tmp_path / 'data/animals')
        change = ''
    message = fail('train', *train(change), monkeypatch=monkeypatch)
    message = message.replace(str(tmp_path) + '/', '')
    (printed,) = (text for mistake, text in SENTENCES.items() if row in mistake)
    sentences = re.findall('`(.*?)`', printed)
    parts = [re.split(r'\.\.\.|17\.jpg', sentence) for sentence in sentences]
    assert any(all(each.strip() in message for each in part) for part in parts), message


def test_each_row_is_tried():
    rows = [text for text in SENTENCES if not text.startswith(('mistake', '---', 'the base'))]
    for mistake in rows[-len({row for row, _ in MISTAKES}) :]:
        assert any(row in mistake for row, _ in MISTAKES), mistake
