"""What is evaluated, on which data, with which models: one folder per task, and in `suites` one per data set.

`dense` is what detection and segmentation share; `models`, `metrics`, `files` and `training` serve all. `catalog` lists
the tasks. Nothing here knows of quantization methods.
"""
