"""The plugins that ship with the project: name -> where its PluginInfo is. Imported lazily."""

from __future__ import annotations

METHODS = {"clamp": "methods.clamp.info:METHOD"}
SOURCES = {
    "noise": "methods.baselines_info:NOISE",
    "real": "methods.baselines_info:REAL",
    "psaq": "methods.psaq.info:SOURCE",
    "clamp": "methods.clamp.info:SOURCE",
}
CALIBRATORS = {
    "minmax": "methods.baselines_info:MINMAX",
    "ema": "methods.baselines_info:EMA",
    "percentile": "methods.baselines_info:PERCENTILE",
    "omse": "methods.baselines_info:OMSE",
}
