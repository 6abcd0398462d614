"""Evaluates a checkpoint of a model: detection, classification or segmentation, as the config says.

A checkpoint is evaluated in its own form; --deploy first fuses one that is in training form.
The authors' files are taken as they are, and files for onnxruntime (.onnx) and OpenVINO (.xml) too.
"""

import argparse

from mmvanilla.cli.options import load_config, make_parser, one_sentence_errors
from mmvanilla.cli.running import evaluate


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        'checkpoint', help="checkpoint file in any form, the authors' too; .onnx or .xml"
    )
    parser.add_argument('--deploy', action='store_true', help='evaluate the fused network')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='average over augmented images: by tta_model and tta_pipeline, if the config has them',
    )
    parser.add_argument('--out', help='file (.pkl) for the predictions')
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error('--out needs a name that ends with .pkl')
    return args


def main() -> None:
    args = parse_args()
    evaluate(load_config(args), args.checkpoint, args.deploy, args.out, args.tta)


if __name__ == '__main__':
    with one_sentence_errors():
        main()
