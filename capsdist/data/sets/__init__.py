"""The original files of each data set, and how they are packed."""
