"""MaskAQ (ICML 2026), its images only: the quantized model attends as the float one where that looks."""
