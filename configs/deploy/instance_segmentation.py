# mmdeploy's settings for detectors with masks: one map of 28x28 scores for each box.
_base_ = 'detection.py'

onnx_config = dict(
    output_names=['dets', 'labels', 'masks'],
    dynamic_axes=dict(masks={0: 'batch', 1: 'boxes'}),
)
codebase_config = dict(post_processing=dict(export_postprocess_mask=False))
