"""Figure 2 of the paper: where classifiers look, by Grad-CAM++, side by side.

Takes images of the first network's test data: on the left, images that all networks classify
correctly; on the right, images that as many networks as possible get wrong. With --images, it takes
those. Each map is for the class that its network predicts. Networks may be in any form; one without
a checkpoint has random weights.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import TRANSFORMS
from mmpretrain.registry import DATASETS
from pytorch_grad_cam import GradCAMPlusPlus
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from mmvanilla import UsageError
from mmvanilla.cli.checks import check_data
from mmvanilla.cli.figures import figure_file, write_figure
from mmvanilla.cli.options import (
    config_file,
    log_errors_only,
    one_sentence_errors,
    read_config,
)
from mmvanilla.cli.running import build_model
from mmvanilla.config import class_of, scope_of
from mmvanilla.models.loading.weights import load_weights, read_state_dict

MOST_IMAGES = 1000  # of the test data, among which examples are looked for

Groups = List[Tuple[str, List[Dict[str, Any]]]]  # images, by the heading above them


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--network',
        type=config_file,
        nargs='+',
        action='append',
        required=True,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='config and checkpoint of a classifier; repeat it for each one',
    )
    parser.add_argument(
        '--layer',
        action='append',
        help='layer whose output is watched, once for each network; by default the last feature '
        'map. The method is meant for layers without negative outputs, such as a ReLU',
    )
    parser.add_argument('--images', type=Path, nargs='+', help='files to show')
    parser.add_argument('--num', type=int, default=4, help='images of each kind')
    parser.add_argument('--seed', type=int, default=0, help='for choice and random weights')
    parser.add_argument('--out', type=figure_file, required=True, help='file (.png, .pdf, .svg)')
    args = parser.parse_args()
    if any(len(network) > 2 for network in args.network):
        parser.error('--network takes a config and a checkpoint')
    args.layer = args.layer or [None] * len(args.network)
    if len(args.layer) != len(args.network):
        parser.error('--layer must be given once for each --network')
    if args.num < 1:
        parser.error('--num takes 1 or more')
    for path in args.images or []:
        if not path.is_file():
            parser.error(f'{path} does not exist')
    return args


class Network(nn.Module):
    """A classifier with what it needs to take images from files.

    Args:
        config: Config file.
        checkpoint: Its weights; random ones if None.
        layer: Name of the layer whose output Grad-CAM++ watches; the last feature map if None,
            which goes through a layer of its own for that, in every network and form.
    """

    def __init__(
        self, config: str, checkpoint: Optional[str] = None, *, layer: Optional[str] = None
    ) -> None:
        super().__init__()
        self.config = config
        self.cfg = read_config(config)
        weights = Path(checkpoint).stem if checkpoint else 'random weights'
        self.name = f'{Path(config).stem}\n{weights}'
        self.classifier = build_model(self.cfg)
        if not hasattr(self.classifier, 'extract_feat') or not hasattr(self.classifier, 'head'):
            raise UsageError(f'{config} is not for a classifier: give one that is.')
        if checkpoint is None:
            self.classifier.init_weights()
        else:
            load_weights(self.classifier, read_state_dict(checkpoint), checkpoint)
        self.classifier.eval()
        self.map = nn.Identity()
        try:
            self.watched = self.map if layer is None else self.classifier.get_submodule(layer)
        except AttributeError as error:
            raise UsageError(f'{config} has no layer {layer}: {error}.') from None
        self.map_shape = None
        self.watched.register_forward_hook(self._note_map)
        transforms = self.cfg.test_dataloader.dataset.pipeline
        self.pipeline = Compose([TRANSFORMS.build(each) for each in transforms])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalized images (N, 3, H, W)."""
        *others, last = self.classifier.extract_feat(images, stage='backbone')
        feats = (*others, self.map(last))
        if len(self.map_shape or ()) != 4:  # or it was not called at all
            raise UsageError(
                f'the watched layer of {self.config} returns no feature map: name another layer of '
                'the backbone with --layer.'
            )
        if self.classifier.with_neck:
            feats = self.classifier.neck(feats)
        return self.classifier.head(feats)

    def _note_map(self, layer: nn.Module, args: Any, out: Any) -> None:
        self.map_shape = getattr(out, 'shape', None)

    def read(self, path: str) -> Dict[str, Any]:
        """An image file after the test pipeline: ``inputs`` (3, H, W), and ``normalized``."""
        inputs = self.pipeline(dict(img_path=path))['inputs']
        batch = self.classifier.data_preprocessor(dict(inputs=default_collate([inputs])))
        return dict(inputs=inputs, normalized=batch['inputs'])

    @torch.no_grad()
    def predict(self, path: str) -> int:
        """The likeliest class of an image file."""
        return self(self.read(path)['normalized']).argmax().item()


def test_images(cfg: Config, seed: int) -> List[Dict[str, Any]]:
    """The images of a config's test data in a random order: ``img_path``, ``gt_label``."""
    check_data(cfg, 'test_dataloader')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return [dataset.get_data_info(int(index)) for index in order[:MOST_IMAGES]]


def choose(networks: Sequence[Network], infos: Sequence[Dict[str, Any]], num: int) -> Groups:
    """Images that all networks classify correctly, and those that most of them get wrong."""
    right, wrong = [], {count: [] for count in range(len(networks), 0, -1)}
    for info in infos:
        mistakes = sum(net.predict(info['img_path']) != info['gt_label'] for net in networks)
        (wrong[mistakes] if mistakes else right).append(info)
        if len(right) >= num and len(wrong[len(networks)]) >= num:
            break
    return [('correct', right[:num]), ('wrong', sum(wrong.values(), [])[:num])]


def overlay(network: Network, path: str) -> Dict[str, Any]:
    """The image (H, W, 3) with the map on it, the predicted class, and its probability."""
    data = network.read(path)
    with torch.no_grad():
        probabilities = network(data['normalized']).softmax(1)[0]
    predicted = probabilities.argmax().item()
    with GradCAMPlusPlus(network, [network.watched]) as cam:
        mask = cam(data['normalized'], [ClassifierOutputTarget(predicted)])[0]  # (H, W), 0 to 1
    image = data['inputs'].permute(1, 2, 0).numpy()[..., ::-1] / np.float32(255)  # BGR to RGB
    return dict(
        image=image,
        shown=show_cam_on_image(image, mask, use_rgb=True),
        predicted=predicted,
        probability=probabilities[predicted].item(),
    )


def draw(networks: Sequence[Network], groups: Groups, out: Path) -> None:
    """A column for each image: the image, then each network's map, its mistakes in red."""
    columns = [(group, info) for group, infos in groups for info in infos]
    rows = len(networks) + 1
    figure = Figure((1.9 * len(columns), 2.2 * rows), layout='constrained')
    axes = figure.subplots(rows, len(columns), squeeze=False)
    names = class_names(networks[0].cfg)
    for (group, info), column in zip(columns, axes.T):
        label = info.get('gt_label')
        truth = '' if label is None else f': {names.get(label, label)}'
        for axis, network in zip(column[1:], networks):
            found = overlay(network, str(info['img_path']))
            predicted = found['predicted']
            axis.imshow(found['shown'])
            axis.set_title(
                f'{names.get(predicted, predicted)}, {found["probability"]:.2f}',
                fontsize=8,
                color='black' if label in (None, predicted) else 'red',
            )
            if network is networks[0]:
                column[0].imshow(found['image'])
        column[0].set_title(f'{group}{truth}', fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, network in zip(axes[1:, 0], networks):
        axis.set_ylabel(network.name, fontsize=8)
    write_figure(figure, out)


def class_names(cfg: Config) -> Dict[int, str]:
    """The names of a config's classes; empty if its data set does not say."""
    dataset = cfg.test_dataloader.dataset
    known = getattr(class_of(dataset, scope_of(cfg), DATASETS), 'METAINFO', {})
    classes = {**known, **(dataset.get('metainfo') or {})}.get('classes') or ()
    return {i: name.split(',')[0] for i, name in enumerate(classes)}


def main() -> None:
    args = parse_args()
    log_errors_only()
    torch.manual_seed(args.seed)
    networks = [Network(*network, layer=layer) for network, layer in zip(args.network, args.layer)]
    if args.images:
        groups = [(path.name, [dict(img_path=str(path))]) for path in args.images]
    else:
        groups = choose(networks, test_images(networks[0].cfg, args.seed), args.num)
    draw(networks, groups, args.out)
    counts = ', '.join(f'{len(infos)} {group}' for group, infos in groups)
    print(f'Wrote {args.out}: {counts}.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
