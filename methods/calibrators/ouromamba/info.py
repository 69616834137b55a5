"""What OuroMamba's quantizer says of itself."""

from __future__ import annotations

from pydantic import Field

from harness.api.plugins import Options, PluginInfo
from methods.core.citations import OUROMAMBA, OUROMAMBA_CODE


class OuroMambaOptions(Options):
    """Options of OuroMamba's quantizer; the defaults are the released code's."""

    ratios: int = Field(100, ge=1, description="ranges tried for every channel of a weight and every position")
    norm: float = Field(2.4, gt=0, description="exponent of the error that chooses among them")
    deviations: float = Field(
        3.0, gt=0, description="standard deviations above a token's mean at which a channel sticks out"
    )
    refresh: int = Field(10, ge=1, description="tokens after which the list of outlier channels is emptied")
    outlier_bits: int | None = Field(
        None, ge=2, le=16, description="bits of outlier channels; if left out twice the activations' (4: 8, 8: 16)"
    )
    epochs: int = Field(10, ge=0, description="passes over the images in which a block's steps are trained; 0: none")
    batch: int = Field(64, ge=1, description="images at once")
    lr: float = Field(5e-4, gt=0, description="AdamW's learning rate of the steps")
    weight_decay: float = Field(1e-5, ge=0, description="AdamW's weight decay")
    clip: float = Field(2.0, gt=0, description="largest norm of the gradient")


INFO = PluginInfo(
    name="ouromamba",
    kind="calibrator",
    summary="OuroMamba's quantizer for Vision Mamba: a step per position, outlier channels of each image in more bits",
    target="methods.calibrators.ouromamba.calibrator:OuroMamba",
    requires="methods.core.graph.requirements:scans",
    origin="published code",
    options=OuroMambaOptions,
    presets={"quick": {"ratios": 20, "epochs": 3}, "default": {}, "paper": {}},
    ablations={
        "steps not trained": {"epochs": 0},
        "outliers in 4 bits": {"outlier_bits": 4},
        "list never emptied": {"refresh": 1000},
    },
    partner="ouromamba-gen",
    trains="quantizers",
    paper=OUROMAMBA,
    code=OUROMAMBA_CODE,
    deviations=(
        "the outlier test is made for every image (the released code: over the whole batch, so that a result depends "
        "on the images that are evaluated together); no option, since the same cell must give the same number",
        "values in outlier channels have more bits than the precision says: their share on the calibration images and "
        "the mean bits are in the record's diagnostics, bit operations leave them out, and such sites are dynamic, so "
        "that results are unverified and never ranked",
        "all tensors of the scheme are quantized (the released code leaves patch embedding, convolutions, norms and "
        "head in float); those that are no tokens are uniform by their extremes. The scan's states stay in float: the "
        "code quantizes saved copies of them, which changes nothing",
        "inferred: an outlier channel has one step for an image and group of tokens; a token's mean and standard "
        "deviation are those of its channels' values; the steps are trained on blocks, by the mean cosine of tokens, "
        "with inputs quantized so far (the code: layer by layer)",
        "W4A8 gives outlier channels 16 bits (the code: float)",
        "as many images as the source makes (32 unless told otherwise; the paper: 128)",
        "preset quick tries 20 ranges and trains 3 epochs",
    ),
)
