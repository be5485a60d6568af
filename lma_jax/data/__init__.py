"""Data: sources of images, their augmentation, and batches; and builds of data sets."""
