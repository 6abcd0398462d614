# ResNet-50 at an 8th of the width, for the scaled ablations (Table 2), here with neither technique.
_base_ = './alexnet_cluttered.py'

model = dict(
    backbone=dict(
        network=dict(
            _delete_=True,
            type='ResNet',
            depth=50,
            stem_channels=8,
            base_channels=8,
            out_indices=(3,),
        )
    )
)
