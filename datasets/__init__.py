"""From files to batches: clip lists, decoding, geometry, augmentation. No networks, no metrics."""
