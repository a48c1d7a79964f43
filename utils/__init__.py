"""Around the model: evaluation, metrics, checkpoints, reports. No networks, no decoding."""
