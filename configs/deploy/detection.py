# mmdeploy's settings for detectors: boxes with scores (N, n, 5), and their labels (N, n).
_base_ = 'classification.py'

onnx_config = dict(
    output_names=['dets', 'labels'],
    dynamic_axes=dict(
        _delete_=True,
        input={0: 'batch', 2: 'height', 3: 'width'},
        dets={0: 'batch', 1: 'boxes'},
        labels={0: 'batch', 1: 'boxes'},
    ),
)
codebase_config = dict(
    _delete_=True,
    type='mmdet',
    task='ObjectDetection',
    model_type='end2end',
    module=['mmvanilla.deployment.rewriters'],
    # What the detector's own test_cfg says comes first; otherwise no box is left out.
    post_processing=dict(
        score_threshold=0.05,
        confidence_threshold=0.005,  # of YOLOv3
        iou_threshold=0.5,
        max_output_boxes_per_class=10000,
        pre_top_k=-1,
        keep_top_k=1000,
        background_label_id=-1,
    ),
)
