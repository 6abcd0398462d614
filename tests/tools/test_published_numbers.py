"""Each published number is kept once, in tools/paper/*.csv; pages and metafile quote it."""

import re

import pytest
from helpers.programs import ROOT
from mmengine.fileio import load

from mmvanilla.cli.tables import read_table

TABLES = {n: read_table(ROOT / f'tools/paper/table{n}.csv') for n in range(1, 6)}
OURS = [row for row in TABLES[4] if row['model'].startswith('VanillaNet')]


def quoted(page, columns):
    """The cells of these columns, from every table of a page that has them all."""
    lines = (ROOT / page).read_text().splitlines()
    cells = [
        [re.sub(r'\[(.*?)\]\(.*?\)', r'\1', cell.strip()) for cell in line.strip()[1:-1].split('|')]
        if line.startswith('|')
        else None
        for line in lines
    ]
    found, head = [], None
    for i, row in enumerate(cells):
        if row is None:
            head = None
        elif head is None and i + 1 < len(lines) and lines[i + 1].startswith('| ---'):
            head = row
        elif head is not None and not row[0].startswith('---') and set(columns) <= set(head):
            found.append(tuple(row[head.index(column)] for column in columns))
    return found


@pytest.mark.parametrize(
    ('page', 'rows', 'columns'),
    [
        (
            'README.md',
            OURS,
            {
                'model and config': 'mmpretrain',
                'parameters (M)': 'parameters (M)',
                'FLOPs (G)': 'FLOPs (G)',
                'top-1 (%)': 'top-1',
                'ReaL (%)': 'ReaL top-1',
            },
        ),
        (
            'configs/imagenet/README.md',
            OURS,
            {
                'paper: parameters (M)': 'parameters (M)',
                'paper: FLOPs (G)': 'FLOPs (G)',
                'paper: depth': 'depth',
            },
        ),
        (
            'docs/speed.md',
            TABLES[4],
            {name: name for name in TABLES[4][0] if name != 'mmpretrain'},
        ),
        (
            'docs/reproduction.md',
            [*TABLES[1], *TABLES[2], *TABLES[3]],
            {'network': 'network', 'row': 'row', 'paper: top-1': 'top-1'},
        ),
        (
            'docs/reproduction.md',
            TABLES[1],
            {
                'paper: FLOPs (G)': 'FLOPs (G)',
                'paper: latency on A100 (ms)': 'latency on A100 (ms)',
                'paper: top-1': 'top-1',
            },
        ),
        (
            'docs/coco.md',
            TABLES[5],
            {
                'n': 'series number',
                'published: parameters (M)': 'parameters (M)',
                **{name: name for name in ('FLOPs (G)', 'FPS (A100)', 'box AP', 'mask AP')},
            },
        ),
    ],
)
def test_pages_quote_the_tables(page, rows, columns):
    expected = [tuple(row[name] for name in columns.values()) for row in rows]
    assert quoted(page, columns) == expected


def test_metafile_quotes_table4():
    ours = {row['mmpretrain']: row for row in OURS}
    models = load(ROOT / 'configs/imagenet/metafile.yml')['Models']
    assert {model['Name'] for model in models} == ours.keys()
    for model in models:
        row, metadata = ours[model['Name']], model['Metadata']
        metrics = model['Results'][0]['Metrics']
        assert float(row['parameters (M)']) == metadata['Parameters'] / 1e6
        assert float(row['FLOPs (G)']) == metadata['FLOPs'] / 1e9
        assert int(row['depth']) == metadata['Depth']
        assert float(row['top-1']) == metrics['Top 1 Accuracy']
        assert float(row['ReaL top-1']) == metrics['ReaL Top 1 Accuracy']


@pytest.mark.parametrize('row', [row for n in (1, 2, 3, 5) for row in TABLES[n]], ids=str)
def test_configs_exist(row):
    assert (ROOT / row['config']).is_file()
