import re


def test_reading_is_timed(run_tool, capsys):
    run_tool('tools/analysis_tools/checkpoint_reading.py', '--megabytes=2', '--rounds=1')
    head, *lines = capsys.readouterr().out.strip().splitlines()
    assert head.startswith('2 MiB, ')
    times = [
        re.fullmatch(r'(.+?) +(\d\.\d+) s, (\d+\.\d+) times torch.load', line) for line in lines
    ]
    assert [found[1] for found in times] == ['all checks', 'no checksums', 'torch.load']
    assert times[-1][3] == '1.00'
