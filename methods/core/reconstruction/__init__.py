"""Block reconstruction: one engine that learns rounding and activation scales, and methods as settings of it."""
