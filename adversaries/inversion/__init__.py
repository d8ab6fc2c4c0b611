"""Gradient inversion: finding the batch whose gradient is the one that was seen.

geiping.py is the plugin. victim.py rebuilds the model from an observation, statistics.py holds the BatchNorm modes,
objectives.py and priors.py what is minimised, labels.py the labels, optimisers.py the steps, awareness.py what knowing
a defense changes, and engine.py the loop.
"""
