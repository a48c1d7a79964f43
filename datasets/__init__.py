"""From files to batches: clip lists, decoding, geometry, augmentation. No networks, no metrics."""

SILENCE = 1e-4
"""A sound whose samples all lie below this (-80 dB of full scale, 3 steps of 16 bits) is silent."""
