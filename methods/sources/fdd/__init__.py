"""FDD (PRCV 2023): PSAQ-ViT's images, synthesized from low frequencies to high ones."""
