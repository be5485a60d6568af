"""Progress output and the files of a workdir."""
