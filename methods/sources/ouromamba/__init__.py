"""OuroMamba's image generator."""
