"""What searches over quantizers share: losses of candidates and cheap evaluation."""
