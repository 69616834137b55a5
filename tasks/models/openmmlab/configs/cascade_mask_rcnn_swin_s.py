"""The same with Swin-S; see cascade_mask_rcnn_swin_t.py."""

_base_ = ["./cascade_mask_rcnn_swin_t.py"]

model = dict(backbone=dict(depths=[2, 2, 18, 2]))
