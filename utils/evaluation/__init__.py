"""Localisation, retrieval and negative audio: rules, metrics, baselines and intervals."""
