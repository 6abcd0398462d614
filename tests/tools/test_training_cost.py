import re

import pytest
from helpers.programs import fail, parse
from mmengine.registry import DefaultScope

TOOL = 'tools/analysis_tools/training_cost.py'
SMALL = ('--batch-size', '2', '--rounds', '1')


def test_hours_are_images_over_throughput(run_tool, capsys):
    configs = [
        'configs/ablations/alexnet_deep_8xb32_in1k.py',
        'configs/digits/retinanet_vanillanet-6_digits.py',
    ]
    run_tool(TOOL, configs[0], '--gpus', '4', '--tflops', '50', *SMALL)
    printed = capsys.readouterr().out
    ((config, epochs, gflop, speed, hours, assumed),) = parse(printed)
    assert (config, epochs) == (configs[0], '100')
    assert float(hours) == pytest.approx(1_281_167 * 100 / float(speed) / 4 / 3600, rel=0.02)
    assert float(assumed) == pytest.approx(
        1_281_167 * 100 * float(gflop) / 1e3 / 50 / 4 / 3600, rel=0.02
    )
    # Forward and backward pass take 3 * 2 operations for each multiply-accumulate: AlexNet's 0.71 G
    # and those of the added 1x1 convolutions.
    assert float(gflop) == pytest.approx(6 * 0.80, rel=0.1)
    assert re.search(r'torch \S+, steps of 2 images, medians of 1', printed)
    DefaultScope._instance_dict.clear()
    run_tool(TOOL, configs[1], '--shape', '64', '64', '--images', '400', *SMALL)
    ((config, epochs, _, speed, hours),) = parse(capsys.readouterr().out)
    assert (config, epochs) == (configs[1], '7')
    assert float(hours) == pytest.approx(400 * 7 / float(speed) / 8 / 3600, rel=0.02)


def test_unknown_data(monkeypatch):
    message = fail(
        'analysis_tools/training_cost',
        'configs/digits/vanillanet-6_digits.py',
        monkeypatch=monkeypatch,
    )
    assert (
        'configs/digits/vanillanet-6_digits.py is for neither ImageNet nor COCO: give the number'
        in message
    )


def test_wrong_numbers(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool(TOOL, 'configs/digits/vanillanet-6_digits.py', '--gpus', '0')
    assert '--gpus must be more than 0' in capsys.readouterr().err


def test_amp_without_a_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    config = 'configs/ablations/alexnet_deep_8xb32_in1k.py'
    message = fail('analysis_tools/training_cost', config, '--amp', monkeypatch=monkeypatch)
    assert '--amp needs a GPU' in message
