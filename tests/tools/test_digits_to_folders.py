import filecmp

import cv2
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

SCRIPT = 'tools/dataset_converters/digits_to_folders.py'
SMALL = ('--num-train=64', '--num-val=20')


def test_layout_and_training(run_tool, tmp_path):
    """mmpretrain reads the folders as a data set, and the demo's config trains on it."""
    run_tool(SCRIPT, tmp_path / 'digits', *SMALL)
    folders = sorted(path.name for path in (tmp_path / 'digits/train').iterdir())
    assert folders == [str(digit) for digit in range(10)]
    images = [sorted((tmp_path / f'digits/{split}').glob('*/*.jpg')) for split in ('train', 'val')]
    assert [len(found) for found in images] == [64, 20]
    assert not {p.name for p in images[0]} & {p.name for p in images[1]}  # different digits
    assert cv2.imread(str(images[0][0])).shape == (64, 64, 3)

    cfg = Config.fromfile('configs/digits/vanillanet-6_digits.py')
    for name in ('train', 'val', 'test'):
        dataloader = cfg[f'{name}_dataloader']
        dataloader.update(num_workers=0, persistent_workers=False, batch_size=20)
        dataloader.dataset.data_root = str(tmp_path / 'digits')
    cfg.train_cfg.max_epochs = 2
    cfg.custom_hooks[0].decay_epochs = 1
    cfg.work_dir = cfg.experiment_name = str(tmp_path / 'run')
    runner = Runner.from_cfg(cfg)
    dataset = runner.build_dataloader(cfg.val_dataloader).dataset
    for index in range(20):
        info = dataset.get_data_info(index)
        assert dataset.CLASSES[info['gt_label']] == info['img_path'].split('/')[-2]
    runner.train()
    assert (tmp_path / 'run/epoch_2_deploy.pth').exists()
    for key in ('accuracy/top1', 'accuracy/top1_origin'):
        assert 0 <= runner.message_hub.get_scalar(f'val/{key}').current() <= 100


@pytest.mark.parametrize('kind', [(), ('--cluttered',)])
def test_same_seed_same_files(run_tool, tmp_path, kind):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        run_tool(SCRIPT, tmp_path / name, *SMALL, *kind, f'--seed={seed}')
    files = [p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').rglob('*.jpg')]
    assert filecmp.cmpfiles(tmp_path / 'a', tmp_path / 'b', files, shallow=False)[0] == files
    assert filecmp.cmpfiles(tmp_path / 'a', tmp_path / 'c', files, shallow=False)[0] != files


def test_existing_folder_is_kept(run_tool, tmp_path):
    with pytest.raises(SystemExit, match='exists already'):
        run_tool(SCRIPT, tmp_path)


def test_more_images_than_digits(run_tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_tool(SCRIPT, tmp_path / 'a', '--num-train=5', '--num-val=1000')
    assert 'there are 1437 training and 360 validation digits' in capsys.readouterr().err
    run_tool(SCRIPT, tmp_path / 'b', '--num-train=5', '--num-val=370', '--cluttered')
    assert 'Wrote 5 train and 370 val images' in capsys.readouterr().out
    images = sorted((tmp_path / 'b/val').glob('*/*.jpg'))
    assert len(images) == 370
    assert {path.name[4:] for path in images} == {'_0.jpg', '_1.jpg'}
