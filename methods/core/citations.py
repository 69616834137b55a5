"""Papers and codes that several plugins cite, and deviations that several share."""

from __future__ import annotations

CLAMP = "Ramachandran et al., CLAMP-ViT: Contrastive Data-Free Learning for Adaptive PTQ of ViTs, ECCV 2024"
CLAMP_CODE = "georgia-tech-synergy-lab/CLAMP-ViT (MIT with a non-commercial disclaimer): evaluation only; nothing taken"
FQVIT_OBSERVERS = "FQ-ViT (IJCAI 2022), observers"
FQVIT_CODE = "megvii-research/FQ-ViT, Apache-2.0"
PSAQ_CODE = "zkkli/PSAQ-ViT, Apache-2.0"
MASKAQ_CODE = "hfutqian/MaskAQ (Apache-2.0, with files marked GPL-3; formulas and settings read, nothing taken)"
HEAD_DEVIATIONS = (  # of MimiQ's image source and what descends from it
    "a layer with one head has no pairs and is left out; class and register tokens are left out of maps and queries; "
    "in windows (Swin) a map has the keys of the query's window",
    "products of queries and keys are the network's own, which timm's networks scale by 1/sqrt(d) before",
    "one batch of all images (the code: 16 per batch); total variation is scaled to that of 16 RGB images of 224x224",
    "the largest roll is scaled from 224 pixels to the model's image size",
    "presets quick and default take 50 and 150 steps, PSAQ-ViT's budgets (preset paper: 2,000)",
)
OUTPUT_ERROR = (
    "output_target=mae is OuroMamba's output loss (ICCV 2025) from secondary sources: that the error is of "
    "probabilities, to one for the random class and 0 for the others, is inferred"
)
BATCHED = "presets quick and default have batches of 4 images (preset paper and the reference: 100)"
WIDENED = "activation ranges are widened to contain 0 (the reference clips the zero point instead)"
OUROMAMBA = "Ramachandran et al., OuroMamba: A Data-Free Quantization Framework for Vision Mamba, ICCV 2025"
OUROMAMBA_CODE = "georgia-tech-synergy-lab/ICCV-OuroMamba, MIT, quantizer only (formulas re-implemented)"
