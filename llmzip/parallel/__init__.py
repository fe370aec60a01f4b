"""Frames of many files, shared by processes, ranks and Dask."""
