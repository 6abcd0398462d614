"""Checkpoints that are damaged, that hold impossible numbers, or that would do harm."""

import os
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import torch
from checkpoint.test_safe_reading import MALICIOUS, MALICIOUS_TENSORS, with_place, write

from faults.forks import Outcome, run_cases, run_tool
from faults.kills import differences
from mmvanilla import UsageError
from mmvanilla.checkpoint import load_checkpoint

DAMAGED = 240


def _noise(rng: random.Random, size: int) -> bytes:
    return bytes(rng.randrange(256) for _ in range(size))


def damage(content: bytes, rng: random.Random) -> Tuple[str, bytes]:
    """What bad disks, cables and copies do to a file, in words, and the file after that."""
    kind = rng.choice(['bit', 'byte', 'zeros', 'block', 'cut', 'swapped', 'longer'])
    where = rng.randrange(len(content))
    size = rng.choice([1, 16, 512, 4096])
    changed = bytearray(content)
    if kind == 'bit':
        changed[where] ^= 1 << rng.randrange(8)
    elif kind == 'byte':
        changed[where] = rng.randrange(256)
    elif kind == 'zeros':
        changed[where : where + size] = bytes(len(changed[where : where + size]))
    elif kind == 'block':
        changed[where : where + size] = _noise(rng, len(changed[where : where + size]))
    elif kind == 'cut':
        del changed[where:]
    elif kind == 'swapped':
        other = rng.randrange(len(content))
        one, two = changed[where : where + 512], changed[other : other + 512]
        changed[where : where + len(two)], changed[other : other + len(one)] = two, one
    else:
        changed += _noise(rng, size)
    return f'{kind} at {where}', bytes(changed)


def impossible(weights: Dict[str, torch.Tensor]) -> Iterator[Tuple[str, str, Any]]:
    """Impossible numbers of a network: a name, the weight, and what it becomes."""
    floats = {k: v for k, v in weights.items() if getattr(v, 'is_floating_point', bool)()}
    for kind, value in (('NaN', float('nan')), ('infinity', float('inf')), ('-inf', -float('inf'))):
        for end in ('weight', 'bias', 'running_mean'):
            name = next((name for name in floats if name.endswith(end)), None)
            if name:
                changed = floats[name].clone()
                changed.view(-1)[-1] = value
                yield f'{kind} in a {end}', name, changed
    for name in [name for name in floats if name.endswith('running_var')][:1]:
        yield 'a negative variance', name, floats[name] - 2 * floats[name].max()
    for name in [name for name in floats if name.endswith('_extra_state')][:1]:
        for value in (-0.5, 1.5, float('nan'), float('inf')):
            yield f'λ = {value}', name, torch.tensor(value, dtype=torch.float64)


def partial_weights(weights: Dict[str, torch.Tensor], rng: random.Random) -> Iterator[Tuple]:
    """Weights that are not whole, in words; some are missing or of another shape."""
    backbone = [n for n in weights if n.startswith('backbone.') and n.endswith(('weight', 'bias'))]
    for share in (0.02, 0.5, 0.93):
        lost = set(rng.sample(backbone, max(1, int(share * len(backbone)))))
        yield f'{len(lost)} missing', {k: v for k, v in weights.items() if k not in lost}
    name = rng.choice([n for n in backbone if weights[n].ndim == 4])
    yield 'another shape', {**weights, name: weights[name][:, :1].repeat(1, 3, 1, 1)}
    yield (
        'all of the backbone but a layer',
        {k: v for k, v in weights.items() if not k.startswith('backbone.blocks.2.')},
    )


def routes(config: Path, work: Path) -> Dict[str, Callable[[Path], Outcome]]:
    """The tools that read checkpoints."""

    def resume(path: Path) -> Outcome:
        (work / 'resume').mkdir(parents=True)
        shutil.copy(path, work / 'resume/epoch_1.pth')
        before = (work / 'resume/epoch_1.pth').read_bytes()
        outcome = run_tool('train', config, '--work-dir', work / 'resume', '--resume')
        kept = [p.read_bytes() for p in (work / 'resume').glob('epoch_1.pth*')]
        note = '' if before in kept or outcome.code == 0 else '\nTraceback: it was overwritten'
        return Outcome(outcome.code, outcome.output + note)

    return {
        'test': lambda path: run_tool('test', config, path, '--work-dir', work / 'test'),
        'resume': resume,
        'load_from': lambda path: run_tool(
            *('train', config, '--work-dir', work / 'start', '--cfg-options', f'load_from={path}')
        ),
        'deploy': lambda path: run_tool('deploy', config, path, work / 'deploy'),
    }


def by_tool(place: Path, path: Path, route: str, config: Path) -> Dict[str, Any]:
    outcome = routes(config, place)[route](path)
    shutil.rmtree(place)
    clean = 'Traceback' not in outcome.output and outcome.code in (0, 1)
    return dict(code=outcome.code, clean=clean, output=outcome.output[-1000:])


def run_all(
    config: Path, checkpoints: Dict[str, Path], folder: Path, rng: random.Random
) -> Dict[str, Dict[str, int]]:
    """Counts by kind of file; ``checkpoints`` are those of a run, by their form."""
    folder.mkdir()
    cases: Dict[str, Any] = {}
    counts = {
        kind: dict(files=0, harmless=0, refused=0, accepted=0, tracebacks=0)
        for kind in ('damaged', 'impossible numbers', 'weights missing', 'malicious')
    }
    contents = {form: load_checkpoint(path) for form, path in checkpoints.items()}

    def judge(kind: str, name: str, path: Path, expected: Any) -> bool:
        """Reads a file here; returns whether it is refused or the same as the whole file."""
        count = counts[kind]
        count['files'] += 1
        try:
            got = load_checkpoint(path)
        except UsageError:
            count['refused'] += 1
        except Exception as error:
            count['tracebacks'] += 1
            print(f'{kind} {name}: {error!r}', flush=True)
        else:
            if expected is not None and not list(differences(got, expected)):
                count['harmless'] += 1
                return False
            count['accepted'] += 1
            print(f'{kind} {name}: read as something else', flush=True)
        return True

    for i in range(DAMAGED):
        form = rng.choice(sorted(checkpoints))
        name, content = damage(checkpoints[form].read_bytes(), rng)
        path = folder / f'damaged_{i}.pth'
        path.write_bytes(content)
        refused = judge('damaged', f'{form}, {name}', path, contents[form])
        if refused and i % 3 == 0:
            route = rng.choice(['test', 'resume', 'load_from', 'deploy'])
            cases[f'damaged {form}, {name}, {route}'] = partial(
                by_tool, path=path, route=route, config=config
            )
    for form in contents:
        weights = contents[form]['state_dict']
        for i, (name, key, value) in enumerate(impossible(weights)):
            path = folder / f'impossible_{form}_{i}.pth'
            torch.save({**contents[form], 'state_dict': {**weights, key: value}}, path)
            for route in ('test', 'resume', 'load_from', 'deploy')[i % 2 :: 2]:
                cases[f'impossible numbers: {name}, {form}, {route}'] = partial(
                    by_tool, path=path, route=route, config=config
                )
        for i, (name, changed) in enumerate(partial_weights(weights, rng)):
            path = folder / f'partial_{form}_{i}.pth'
            torch.save({**contents[form], 'state_dict': changed}, path)
            for route in ('test', 'load_from', 'deploy'):
                cases[f'weights missing: {name}, {form}, {route}'] = partial(
                    by_tool, path=path, route=route, config=config
                )
    place = f'/tmp/mmvanilla-{os.getpid()}-ran'
    for name, instructions in {**MALICIOUS, **MALICIOUS_TENSORS}.items():
        path = write(folder / f'{name}.pth', with_place(instructions, place))
        judge('malicious', name, path, None)
        counts['malicious']['accepted'] += os.path.exists(place)
    for name, found in run_cases(cases, folder / 'cases'):
        kind = name.split(':')[0] if ':' in name else 'damaged'
        if kind != 'damaged':
            counts[kind]['files'] += 1
        if isinstance(found, str) or not found['clean']:
            counts[kind]['tracebacks'] += 1
        elif found['code'] == 0:
            counts[kind]['accepted'] += 1
        elif kind != 'damaged':
            counts[kind]['refused'] += 1
        if isinstance(found, str) or not found['clean'] or found['code'] == 0:
            print(f'{name}: {found if isinstance(found, str) else found["output"]}', flush=True)
    return counts
