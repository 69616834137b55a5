"""UperNet on a small ViT for 128x128 scenes: mmseg's usual one, narrow and without auxiliary head."""

default_scope = "mmseg"

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[127.5, 127.5, 127.5], std=[64.0, 64.0, 64.0], size=(128, 128)
    ),
    backbone=dict(
        type="VisionTransformer",
        img_size=(128, 128),
        patch_size=8,
        embed_dims=128,
        num_layers=8,
        num_heads=4,
        out_indices=(3, 5, 7),
        final_norm=True,
    ),
    neck=dict(type="MultiLevelNeck", in_channels=[128, 128, 128], out_channels=64, scales=[2, 1, 0.5]),
    decode_head=dict(
        type="UPerHead",
        in_channels=[64, 64, 64],
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
