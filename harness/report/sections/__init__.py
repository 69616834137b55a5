"""Sections of a report, one a module: frames in, frames and text out."""
