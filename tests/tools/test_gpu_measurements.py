"""All measurements on a GPU as one program: its commands, what it keeps, and what it repeats."""

import json
import runpy
import shlex

import gpu_measurements
import pytest
from helpers.programs import ROOT

TOOL = 'tools/analysis_tools/gpu_measurements.py'
PROGRAMS = [
    (step, command) for step, commands in gpu_measurements.STEPS.items() for command in commands
]
STEPS = {
    'good': ['-c "print(\'x\\n| a | b |\\n| --- | --- |\\n| 1 | 2 |\')"', '-c "print(3)"'],
    'bad': ['-c "import sys; print(4); sys.exit(5)"', '-c "print(6)"'],
}


@pytest.mark.parametrize(('step', 'command'), PROGRAMS)
def test_programs_take_their_options(step, command, monkeypatch):
    program, *options = shlex.split(command.format(out='work_dirs/gpu'))
    if program == '-m':
        assert options == ['pytest', '-m', 'gpu', 'tests/gpu'] and (ROOT / 'tests/gpu').is_dir()
        return
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr('sys.argv', [program, *options])
    runpy.run_path(program)['parse_args']()


def test_steps_are_kept_and_those_that_failed_repeated(run_tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_measurements, 'STEPS', STEPS)
    monkeypatch.setattr('sys.argv', [TOOL, '--work-dir', str(tmp_path)])
    for said in ('good: -c', f'good: done before, see {tmp_path}/good.json'):
        with pytest.raises(SystemExit, match='not whole: bad. The same command does them again.'):
            gpu_measurements.main()
        assert said in capsys.readouterr().out
    good, bad = (json.loads((tmp_path / f'{step}.json').read_text()) for step in STEPS)
    assert good['is_whole'] and not bad['is_whole']
    assert [each['tables'] for each in good['commands']] == [[[['a', 'b'], ['1', '2']]], []]
    assert [each['code'] for each in bad['commands']] == [5, 0]
    assert [each['output'] for each in bad['commands']] == ['4\n', '6\n']
    monkeypatch.setattr('sys.argv', [TOOL, 'good', '--print', '--work-dir', str(tmp_path)])
    gpu_measurements.main()
    assert '| a | b |\n| --- | --- |\n| 1 | 2 |\n' in capsys.readouterr().out


def test_step_that_takes_too_long_is_not_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_measurements, 'LIMIT', 1)
    sleep = '-c "import time; print(7, flush=True); time.sleep(60)"'
    monkeypatch.setattr(gpu_measurements, 'STEPS', {'long': [sleep]})
    assert not gpu_measurements.do_step('long', tmp_path, {})
    found = json.loads((tmp_path / 'long.json').read_text())
    assert [each['code'] for each in found['commands']] == [None]


def test_wrong_options(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr('sys.argv', [TOOL, 'table6'])
    with pytest.raises(SystemExit):
        gpu_measurements.main()
    assert 'no step is called table6: choose of tests, table4,' in capsys.readouterr().err
    options = ['tests', '--wheels', str(tmp_path), '--work-dir', str(tmp_path)]
    monkeypatch.setattr('sys.argv', [TOOL, *options])
    with pytest.raises(SystemExit, match='has no wheels: make them with tools/gpu_wheels.sh'):
        gpu_measurements.main()
