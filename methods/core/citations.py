"""Papers and codes that several plugins cite, and deviations that several share."""

from __future__ import annotations

CLAMP = "Ramachandran et al., CLAMP-ViT: Contrastive Data-Free Learning for Adaptive PTQ of ViTs, ECCV 2024"
CLAMP_CODE = "georgia-tech-synergy-lab/CLAMP-ViT (MIT with a non-commercial disclaimer): evaluation only; nothing taken"
FQVIT_OBSERVERS = "FQ-ViT (IJCAI 2022), observers"
FQVIT_CODE = "megvii-research/FQ-ViT, Apache-2.0"
PSAQ_CODE = "zkkli/PSAQ-ViT, Apache-2.0"
BATCHED = "presets quick and default have batches of 4 images (preset paper and the reference: 100)"
WIDENED = "activation ranges are widened to contain 0 (the reference clips the zero point instead)"
