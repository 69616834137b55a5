"""UperNet on a three-stage Swin for 128x128 scenes: mmseg's usual one, narrow and without auxiliary head."""

default_scope = "mmseg"

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[127.5, 127.5, 127.5], std=[64.0, 64.0, 64.0], size=(128, 128)
    ),
    backbone=dict(
        type="SwinTransformer",
        pretrain_img_size=128,
        embed_dims=48,
        depths=(2, 2, 4),
        num_heads=(3, 6, 12),
        strides=(4, 2, 2),
        out_indices=(0, 1, 2),
        window_size=4,
        drop_path_rate=0.0,
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[48, 96, 192],
        in_index=[0, 1, 2],
        pool_scales=(1, 2, 4),
        channels=64,
        dropout_ratio=0.0,
        num_classes=11,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss"),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
