"""Command-line options (key=value) that several tests use."""

from mmengine.config import Config, DictAction


def loader_options(*settings):
    """Options for the training, validation and test data loaders, which start no processes."""
    return [
        f'{name}_dataloader.{setting}'
        for name in ('train', 'val', 'test')
        for setting in ('num_workers=0', 'persistent_workers=False', *settings)
    ]


def read_config(path, options, **kwargs):
    """Reads a config and applies ``options`` to it, as the tools do, and ``kwargs``."""
    cfg = Config.fromfile(path)
    parsed = dict(option.split('=') for option in options)
    options = {k: DictAction._parse_iterable(v) for k, v in parsed.items()}
    cfg.merge_from_dict(dict(options, **kwargs))
    return cfg
