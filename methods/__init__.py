"""Image sources, transforms, calibrators and end-to-end methods: one folder per plugin, named as the plugin is.

All stand on `core`; `api` is what plugins of other packages may import, and `catalog` lists the built-in ones.
"""
