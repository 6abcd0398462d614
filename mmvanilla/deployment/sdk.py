"""What mmdeploy's SDK is told of our classifier's head, whose scores it handles like any other."""

from typing import Any

from mmdeploy.codebase.mmpretrain.deploy.classification import Classification

_get_postprocess = Classification.get_postprocess


def get_postprocess(self: Classification, *args: Any, **kwargs: Any) -> dict:
    """As mmdeploy's, with the name of a head that the SDK knows."""
    head = self.model_cfg.model.head
    if head.type.split('.')[-1] == 'VanillaNetClsHead':
        head.type = 'LinearClsHead'
    return _get_postprocess(self, *args, **kwargs)


Classification.get_postprocess = get_postprocess
