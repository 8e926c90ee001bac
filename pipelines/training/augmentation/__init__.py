"""Random changes of training images: drawn for the global batch, applied to whole batches of uint8 pixels."""
