"""Bytes and text in and out: regular files, atomic writes, text that is safe to print, the console."""
