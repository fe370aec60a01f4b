"""Many files: their frames are coded by worker processes, ranks of a launcher, or Dask."""
