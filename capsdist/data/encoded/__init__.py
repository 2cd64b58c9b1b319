"""Splits of encoded images: tar files of image files, tables of where they lie, and their reader."""
