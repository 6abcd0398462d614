# VanillaNet-9 at a 32nd of the width, for Figure 2 on the digits.
_base_ = './vanillanet-6_cluttered.py'

model = dict(backbone=dict(arch='9'))
