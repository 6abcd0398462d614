# mmdeploy's settings for classifiers: ONNX for batches and images of any size, in onnxruntime.
onnx_config = dict(
    type='onnx',
    export_params=True,
    keep_initializers_as_inputs=False,
    opset_version=17,
    save_file='end2end.onnx',
    input_names=['input'],
    output_names=['output'],
    input_shape=None,
    optimize=False,
    dynamic_axes=dict(input={0: 'batch', 2: 'height', 3: 'width'}, output={0: 'batch'}),
)
codebase_config = dict(
    type='mmpretrain',
    task='Classification',
    module=['mmvanilla.deployment.rewriters', 'mmvanilla.deployment.sdk'],
)
backend_config = dict(type='onnxruntime')
