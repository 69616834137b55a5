"""Models of mmdetection and mmsegmentation, built from ordinary mmengine configs, with or without a compiled mmcv.

Importing this package imports nothing of OpenMMLab; its functions do.
"""
