"""Second stage: measures cells, in workers of their own, and checks what methods hand back."""
