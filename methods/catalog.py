"""The plugins that ship with the project: name -> where its PluginInfo is. Imported lazily."""

from __future__ import annotations

METHODS = {
    "clamp": "methods.clamp.info:METHOD",
    "psaq2": "methods.psaq2.info:METHOD",
}
SOURCES = {
    "noise": "methods.baselines_info:NOISE",
    "real": "methods.baselines_info:REAL",
    "psaq": "methods.psaq.info:SOURCE",
    "clamp": "methods.clamp.info:SOURCE",
    "sardfq": "methods.sardfq.info:SOURCE",
    "fdd": "methods.fdd.info:SOURCE",
    "mimiq": "methods.mimiq.info:SOURCE",
}
CALIBRATORS = {
    "minmax": "methods.baselines_info:MINMAX",
    "ema": "methods.baselines_info:EMA",
    "percentile": "methods.baselines_info:PERCENTILE",
    "omse": "methods.baselines_info:OMSE",
    "clamp-search": "methods.clamp.info:SEARCH",
    "fqvit": "methods.fqvit.info:CALIBRATOR",
    "evolq": "methods.evolq.info:CALIBRATOR",
    "noisyquant": "methods.noisyquant.info:CALIBRATOR",
    "repq": "methods.repq.info:CALIBRATOR",
    "erq": "methods.erq.info:CALIBRATOR",
    "adalog": "methods.adalog.info:CALIBRATOR",
    "ptq4vit": "methods.ptq4vit.info:PTQ4VIT",
    "baseptq": "methods.ptq4vit.info:BASEPTQ",
    "adaround": "methods.recon.info:ADAROUND",
    "brecq": "methods.recon.info:BRECQ",
    "qdrop": "methods.recon.info:QDROP",
    "aphq": "methods.recon.info:APHQ",
    "fimaq": "methods.recon.info:FIMAQ",
    "isvit": "methods.isvit.info:CALIBRATOR",
}
