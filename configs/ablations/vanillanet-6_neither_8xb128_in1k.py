# Table 2: VanillaNet-6 with neither technique.
_base_ = './vanillanet-6_series_8xb128_in1k.py'

model = dict(backbone=dict(act_num=0))
