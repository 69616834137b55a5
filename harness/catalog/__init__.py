"""Plugins: where they are, what they are called, what they require, and how they make a method."""
