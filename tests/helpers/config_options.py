"""Options of the command line (key=value) that several tests give."""

from mmengine.config import Config, DictAction


def loader_options(*settings):
    """Settings of the training, validation and test data loaders, which start no processes."""
    return [
        f'{name}_dataloader.{setting}'
        for name in ('train', 'val', 'test')
        for setting in ('num_workers=0', 'persistent_workers=False', *settings)
    ]


def read_config(path, options, **kwargs):
    """A config with options merged in, as the tools do it, and with ``kwargs``."""
    cfg = Config.fromfile(path)
    parsed = dict(option.split('=') for option in options)
    cfg.merge_from_dict({k: DictAction._parse_iterable(v) for k, v in parsed.items()} | kwargs)
    return cfg
