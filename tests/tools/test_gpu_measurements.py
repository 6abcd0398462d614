"""All measurements on a GPU as one program: its commands, what it keeps, and what it repeats."""

import json
import runpy
import shlex
from pathlib import Path

import gpu_measurements
import pytest
from helpers.programs import ROOT

TOOL = 'tools/analysis_tools/gpu_measurements.py'
PROGRAMS = [
    (step, command) for step, commands in gpu_measurements.STEPS.items() for command in commands
]
STEPS = {
    'good': ['-c "print(\'x\\n\\n| a | b |\\n| --- | --- |\\n| 1 | 2 |\')"', '-c "print(3)"'],
    'bad': ['-c "import sys; print(4); sys.exit(5)"', '-c "print(6)"'],
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the program with steps of its own, as if there were a GPU."""
    monkeypatch.setattr(gpu_measurements, 'make_environment', dict)

    def call(steps, *options):
        monkeypatch.setattr(gpu_measurements, 'STEPS', steps)
        monkeypatch.setattr('sys.argv', [TOOL, '--work-dir', str(tmp_path), *options])
        gpu_measurements.main()

    return call


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(('step', 'command'), PROGRAMS)
def test_programs_take_their_options(step, command, monkeypatch):
    program, *options = shlex.split(command.format(out='work_dirs/gpu', new='/new', step=step))
    if program == '-m':
        assert options == ['pytest', '-m', 'gpu', 'tests/gpu'] and (ROOT / 'tests/gpu').is_dir()
        return
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr('sys.argv', [program, *options])
    runpy.run_path(program)['parse_args']()


def test_steps_are_kept_and_those_that_failed_repeated(run, tmp_path, capsys):
    for said in ('good: -c', f'good: done before, see {tmp_path}/good.json'):
        with pytest.raises(SystemExit, match='not done: bad. The same command goes on with them.'):
            run(STEPS)
        assert said in capsys.readouterr().out
    good, bad = (read(tmp_path / f'{step}.json') for step in STEPS)
    assert good['is_whole'] and not bad['is_whole']
    table = ['x', [['a', 'b'], ['1', '2']]]
    assert [each['tables'] for each in good['commands']] == [[table], []]
    assert [(each['code'], each['output']) for each in bad['commands']] == [(5, '4\n')]
    run(STEPS, 'good', '--print')
    assert 'x\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n' in capsys.readouterr().out


def test_stops_in_time(run, tmp_path):
    """A command that takes too long is stopped, and no step begins after that."""
    sleep = '-c "import time; print(7, flush=True); time.sleep(60)"'
    with pytest.raises(SystemExit, match='not done: long, later'):
        run({'long': [sleep], 'later': ['-c "print(8)"']}, '--seconds', '2')
    (found,) = read(tmp_path / 'long.json')['commands']
    assert (found['code'], found['output']) == (None, '7\n')
    assert not (tmp_path / 'later.json').exists()


def test_places(run, tmp_path):
    """Commands know the work dir, the step and a folder that is gone afterwards."""
    write = '-c "import sys; open(sys.argv[1], \'x\').write(sys.argv[2])"'
    run({'a': [f'{write} {{out}}/{{step}}.csv {{new}}', f'{write} {{new}}/b c']})
    folder = (tmp_path / 'a.csv').read_text()
    assert folder.startswith('/') and not Path(folder).exists()


def test_wrong_options(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr('sys.argv', [TOOL, 'table6'])
    with pytest.raises(SystemExit):
        gpu_measurements.main()
    assert 'no step is called table6: choose of tests, table4-float32,' in capsys.readouterr().err
    options = ['tests', '--wheels', str(tmp_path), '--work-dir', str(tmp_path)]
    monkeypatch.setattr('sys.argv', [TOOL, *options])
    with pytest.raises(SystemExit, match='has no wheels: make them with tools/gpu_wheels.sh'):
        gpu_measurements.main()


def test_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setattr('sys.argv', [TOOL, '--work-dir', str(tmp_path)])
    with pytest.raises(SystemExit, match='torch has no GPU here.'):
        gpu_measurements.main()
    assert not list(tmp_path.glob('*.json'))
