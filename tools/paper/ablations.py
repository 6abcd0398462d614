"""Tables 1, 2 and 3 of the paper at the scale of a laptop: handwritten digits in clutter.

Trains every row's techniques, as in its ImageNet config, on the digits with several seeds, one run
per core at a time. Finished runs are not repeated. Prints the tables beside the paper's, and which
of the paper's orderings hold; writes them and plots to the work dir.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from math import nan
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from scipy.stats import nct as noncentral
from scipy.stats import t as student
from scipy.stats import ttest_ind
from tqdm import tqdm

from mmvanilla.checkpoint import replace_when_whole, reserve_folder
from mmvanilla.cli.checks import check_data
from mmvanilla.cli.figures import write_figure
from mmvanilla.cli.kept_runs import code_digest, differences, read_results, run_and_keep
from mmvanilla.cli.options import one_sentence_errors, read_config
from mmvanilla.cli.running import read_log
from mmvanilla.cli.tables import markdown_lines, read_table
from mmvanilla.cli.timing import describe_machine

WORK_DIR = Path('work_dirs/evidence')
DIGITS_CONFIGS = Path('configs/digits')
IMAGES, BATCH_SIZE = 6400, 64
# The settings of backbone and head in which the rows differ.
TECHNIQUES = ('act_num', 'deep_training', 'merged', 'shortcut')
TOP1 = 'accuracy/top1'
HEAD_OF_ORDERINGS = [
    *('in the paper', 'by', 'digits: by', '95% interval', 'verdict', 'seeds needed')
]
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'  # as mmengine chooses
JOBS = 1 if DEVICE == 'cuda' else os.cpu_count()

Row = Dict[str, str]
Rows = Dict[str, List[float]]  # accuracies, one per seed, by the name of the row


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--tables', type=int, nargs='+', choices=[1, 2, 3], default=[1, 2, 3], help='which tables'
    )
    parser.add_argument('--seeds', type=int, default=5, help='number of seeds')
    parser.add_argument(
        '--jobs',
        type=int,
        default=JOBS,
        help='runs at a time; without a GPU one per core',
    )
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error('--seeds takes 2 or more: one run has no standard deviation')
    if args.jobs < 1:
        parser.error('--jobs takes 1 or more')
    return args


def read_rows(tables: Sequence[int]) -> List[Row]:
    """The rows of the paper's Tables 1 to 3, with the config of each."""
    return [
        dict(row, table=str(table))
        for table in sorted(set(tables))
        for row in read_table(Path(__file__).with_name(f'table{table}.csv'))
    ]


class Setting(NamedTuple):
    """How runs differ from those of the tables.

    Attributes:
        length: Times as many iterations.
        images: The training images, of which each iteration takes 64. Other numbers than 6400 are
            in folders of their own; the validation images are the same.
        lambda_share: The part of a run until λ = 1, of rows with deep training; by default as on
            ImageNet.
        options: Other settings of the config, as for ``--cfg-options``.
    """

    length: int = 1
    images: int = IMAGES
    lambda_share: Optional[float] = None
    options: Dict[str, Any] = {}


def epochs_of(cfg: Config, setting: Setting) -> float:
    """The epochs of a network's runs in a setting: a whole number, if the setting fits it."""
    return cfg.train_cfg.max_epochs * setting.length * IMAGES / setting.images


def digits_config(config: str, seed: int, setting: Setting = Setting()) -> Config:
    """The config of a network on the digits, with the techniques of an ImageNet config."""
    row = read_config(config)
    network = Path(config).name.split('_')[0]
    cfg = read_config(DIGITS_CONFIGS / f'{network}_cluttered.py', setting.options)
    for part in ('backbone', 'head'):
        given = row.model[part]
        cfg.model[part].update({key: given[key] for key in TECHNIQUES if key in given})
    epochs = int(epochs_of(cfg, setting))
    if setting.images != IMAGES:
        cfg.train_dataloader.dataset.data_root += f'_{setting.images}'
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    cfg.param_scheduler[1].end = epochs
    share = row.custom_hooks[0].decay_epochs / row.train_cfg.max_epochs
    if share and setting.lambda_share is not None:
        share = setting.lambda_share
    cfg.custom_hooks[0].decay_iters = round(share * epochs * setting.images / BATCH_SIZE)
    cfg.randomness = dict(seed=seed)
    return cfg


def train(folder: Path, text: str) -> float:
    """Trains with a config, unless the same code did so before, on the same kind of device.

    Args:
        folder: For everything that the run writes.
        text: The config.

    Returns:
        Top-1 accuracy (%) on the digits' validation images.

    Raises:
        RuntimeError: naming the log, if training failed.
    """

    def run(folder: Path) -> Dict[str, float]:
        path, log = folder / 'config.py', folder / 'log.txt'
        path.write_text(text)
        command = [sys.executable, 'tools/train.py', str(path), '--work-dir', str(folder)]
        with open(log, 'w') as file:
            one_core = {**os.environ, 'OMP_NUM_THREADS': '1'}
            ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=one_core)
        if ended.returncode != 0:
            raise RuntimeError(f'training failed: see {log}.')
        return dict(top1=read_log(folder)[-1][TOP1])

    asked = dict(config=text, code=code_digest(), machine=describe_machine(DEVICE))
    if differences(folder, asked) == []:
        return read_results(folder)['top1']
    return run_and_keep(folder, asked, run)['top1']


def run_folder(config: str, seed: int, folder: str = '') -> Path:
    """Where ``train_all`` keeps a run."""
    return WORK_DIR / folder / f'{Path(config).stem}_{seed}'


def train_all(
    configs: Sequence[str], seeds: int, jobs: int, folder: str = '', setting: Setting = Setting()
) -> Dict[str, List[float]]:
    """The accuracies of every config, by seed; several are trained at a time.

    Args:
        configs: Configs on ImageNet.
        seeds: How many; they start at 0.
        jobs: How many runs at a time.
        folder: A folder in the work dir for these runs.
        setting: How the runs differ from those of the tables.
    """
    cfgs = {  # read one after the other: mmengine's reader is not thread-safe
        (config, seed): digits_config(config, seed, setting)
        for seed in range(seeds)
        for config in configs
    }
    for cfg in cfgs.values():
        check_data(cfg, 'train_dataloader', 'val_dataloader')
    texts = {run: cfg.pretty_text for run, cfg in cfgs.items()}
    found = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(train, run_folder(*run, folder), text): run for run, text in texts.items()
        }
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit='run'):
                found[futures[future]] = future.result()
        except RuntimeError as error:
            sys.exit(f'error: {error}')
        except KeyboardInterrupt:
            sys.exit('Stopped. Runs that had ended are kept: the same command does the rest.')
        finally:
            for future in futures:
                future.cancel()
    return {config: [found[config, seed] for seed in range(seeds)] for config in configs}


class Ordering(NamedTuple):
    """Two rows of which the paper has one ahead, and what was found here.

    Attributes:
        name: What is ahead of what in the paper.
        paper: By how much there.
        here: By how much here; less than 0 if it is behind.
        interval: The 95% confidence interval of that.
        p: How often chance alone makes a difference that large (Welch's t-test over the seeds); nan
            without deviation.
        seeds: ``seeds_needed`` for a difference as large as the paper's.
    """

    name: str
    paper: float
    here: float
    interval: Tuple[float, float]
    p: float
    seeds: Optional[int]

    @property
    def verdict(self) -> str:
        """A difference counts if chance alone makes one as large less than one time in twenty."""
        if not self.p < 0.05:
            return 'not decided'
        return 'reproduced' if self.here > 0 else 'reversed'

    def cells(self) -> List[str]:
        """What stands below ``HEAD_OF_ORDERINGS``."""
        return [
            self.name,
            f'{self.paper:.2f}',
            f'{self.here:.2f}',
            '{:.2f} to {:.2f}'.format(*self.interval),
            f'{self.verdict} (p = {self.p:.2g})',
            # which is an estimate
            'unknown' if self.seeds is None else f'{float(f"{self.seeds:.2g}"):,.0f}',
        ]


def compare(rows: Rows, paper: Dict[str, float]) -> List[Ordering]:
    """The paper's ordering of rows, each with the next, against the accuracies found."""
    ranked = sorted(rows, key=paper.get, reverse=True)
    compared = []
    for better, worse in zip(ranked, ranked[1:]):
        here = mean(rows[better]) - mean(rows[worse])
        there = paper[better] - paper[worse]
        variances = variance(rows[better]), variance(rows[worse])
        interval, p = (here, here), nan
        if any(variances):
            p = ttest_ind(rows[better], rows[worse], equal_var=False).pvalue
            error, freedom = uncertainty(variances, (len(rows[better]), len(rows[worse])))
            interval = student.interval(0.95, freedom, here, error)
        seeds = seeds_needed(*variances, there)
        compared.append(Ordering(f'{better} > {worse}', there, here, interval, p, seeds))
    return compared


def uncertainty(variances: Sequence[float], numbers: Sequence[int]) -> Tuple[float, float]:
    """The standard error of the difference of two means, and Welch's degrees of freedom.

    Args:
        variances: Of the values of each.
        numbers: How many values each has.
    """
    parts = [each / number for each, number in zip(variances, numbers)]
    squares = [part**2 / (number - 1) for part, number in zip(parts, numbers)]
    return sum(parts) ** 0.5, sum(parts) ** 2 / sum(squares)


def seeds_needed(first: float, second: float, difference: float) -> Optional[int]:
    """How many seeds a row needs for its difference from another to be seen.

    Args:
        first: The variance of one row's accuracies.
        second: The variance of the other's.
        difference: Of their means.

    Returns:
        For how many seeds Welch's t-test at 5% sees the difference four times in five; None
        without variance.
    """
    if not first + second:
        return None

    def power(seeds: int) -> float:
        error, freedom = uncertainty((first, second), (seeds, seeds))
        return noncentral.sf(student.ppf(0.975, freedom), freedom, abs(difference) / error)

    few, enough = 1, 2  # of which power(enough) is 0.8 or more, and power(few) less
    while power(enough) < 0.8:
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if power(middle) >= 0.8 else (middle, enough)
    return enough


def report(rows: Sequence[Row], found: Dict[str, List[float]]) -> str:
    """The tables and the orderings, as Markdown."""
    parts = []
    for table in sorted({row['table'] for row in rows}):
        own = [row for row in rows if row['table'] == table]
        lines = [
            [
                row['network'],
                row['row'],
                row['top-1'],
                f'{mean(found[row["config"]]):.2f} ± {stdev(found[row["config"]]):.2f}',
                ', '.join(f'{value:.2f}' for value in found[row['config']]),
            ]
            for row in own
        ]
        head = ['network', 'row', 'paper: top-1', 'digits: top-1', 'by seed']
        parts.append(f'Table {table}, top-1 accuracy (%), mean ± standard deviation:')
        parts.append('\n'.join(markdown_lines(head, lines)))
        parts.append('\n'.join(markdown_lines(HEAD_OF_ORDERINGS, order(own, found))))
    return '\n\n'.join(parts)


def order(rows: Sequence[Row], found: Dict[str, List[float]]) -> List[List[str]]:
    """The orderings of one table, as lines; for Table 2 also those of the networks' gains."""
    lines, gains, paper_gains = [], {}, {}
    for network in dict.fromkeys(row['network'] for row in rows):
        own = {row['row']: row for row in rows if row['network'] == network}
        accuracies = {name: found[row['config']] for name, row in own.items()}
        paper = {name: float(row['top-1']) for name, row in own.items()}
        lines += [
            line._replace(name=f'{network}: {line.name}') for line in compare(accuracies, paper)
        ]
        if 'both' in own:
            name = f'gain of {network}'
            pairs = zip(accuracies['both'], accuracies['neither'])
            gains[name] = [both - neither for both, neither in pairs]
            paper_gains[name] = paper['both'] - paper['neither']
    if gains:
        lines += compare(gains, paper_gains)
    return [line.cells() for line in lines]


def draw(rows: Sequence[Row], found: Dict[str, List[float]], path: Path) -> None:
    """The paper's accuracies above, those on the digits below, with their deviations."""
    tables = sorted({row['table'] for row in rows})
    widths = [sum(row['table'] == table for row in rows) for table in tables]
    figure = Figure((13, 6), layout='constrained')
    axes = figure.subplots(2, len(tables), squeeze=False, width_ratios=widths)
    for table, (above, below) in zip(tables, axes.T):
        own = [row for row in rows if row['table'] == table]
        networks = dict.fromkeys(row['network'] for row in own)
        for network in networks:
            places = [i for i, row in enumerate(own) if row['network'] == network]
            here = [found[own[i]['config']] for i in places]
            above.plot(places, [float(own[i]['top-1']) for i in places], 'o:', label=network)
            deviations = list(map(stdev, here))
            below.errorbar(places, list(map(mean, here)), deviations, fmt='o:', capsize=3)
        for axis, where in ((above, 'paper, ImageNet'), (below, 'digits in clutter')):
            axis.set_ylabel(f'{where}: top-1 (%)')
            axis.set_xticks(range(len(own)), [row['row'] for row in own], rotation=25, ha='right')
            axis.grid(alpha=0.3, axis='y')
        above.set_title(f'Table {table}')
        if len(networks) > 1:
            above.legend(fontsize=8)
    write_figure(figure, path)


def main() -> None:
    args = parse_args()
    reserve_folder(WORK_DIR)
    rows = read_rows(args.tables)
    found = train_all(list({row['config']: None for row in rows}), args.seeds, args.jobs)
    seeds = ', '.join(map(str, range(args.seeds)))
    text = f'{describe_machine(DEVICE)}, seeds {seeds}.\n\n{report(rows, found)}'
    name = 'evidence' if len(args.tables) == 3 else 'table' + '_'.join(map(str, args.tables))
    with replace_when_whole(WORK_DIR / f'{name}.md') as temporary:
        temporary.write_text(text + '\n')
    draw(rows, found, WORK_DIR / f'{name}.png')
    print(f'{text}\n\nThese tables are in {WORK_DIR}/{name}.md, plots of them in {name}.png there.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
