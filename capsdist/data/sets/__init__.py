"""Data sets: their original files, and how they are packed."""
