# mmdeploy's settings for segmentors; the map of classes has the size of the image.
_base_ = 'classification.py'

onnx_config = dict(dynamic_axes=dict(output={2: 'height', 3: 'width'}))
codebase_config = dict(
    _delete_=True,
    type='mmseg',
    task='Segmentation',
    with_argmax=True,
    module=['mmvanilla.deployment.rewriters'],
)
