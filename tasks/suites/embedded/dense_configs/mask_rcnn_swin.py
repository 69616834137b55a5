"""Mask R-CNN on a three-stage Swin for 128x128 scenes: mmdet's usual one with narrow neck and heads and few RoIs."""

default_scope = "mmdet"
classes = 10
width = 64  # channels of neck and heads
strides = [4, 8, 16]

model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        pad_mask=True,
        pad_size_divisor=16,
    ),
    backbone=dict(
        type="SwinTransformer",
        embed_dims=48,
        depths=(2, 2, 4),
        num_heads=(3, 6, 12),
        strides=(4, 2, 2),
        out_indices=(0, 1, 2),
        window_size=4,
        drop_path_rate=0.0,
    ),
    neck=dict(type="FPN", in_channels=[48, 96, 192], out_channels=width, num_outs=len(strides)),
    rpn_head=dict(
        type="RPNHead",
        in_channels=width,
        feat_channels=width,
        # Squares of 24, 48 and 96 pixels: items are 20 to 70 pixels long.
        anchor_generator=dict(type="AnchorGenerator", scales=[6], ratios=[0.5, 1.0, 2.0], strides=strides),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
            out_channels=width,
            featmap_strides=strides,
            finest_scale=24,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=width,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=classes,
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss"),
            loss_bbox=dict(type="L1Loss"),
        ),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=2),
            out_channels=width,
            featmap_strides=strides,
            finest_scale=24,
        ),
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=2,
            in_channels=width,
            conv_out_channels=width,
            num_classes=classes,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type="RandomSampler", num=64, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=200, max_per_img=100, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False
            ),
            sampler=dict(type="RandomSampler", num=32, pos_fraction=0.4),
            mask_size=28,
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=100, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=30, mask_thr_binary=0.5),
    ),
)
