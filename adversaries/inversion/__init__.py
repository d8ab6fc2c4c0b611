"""Gradient inversion: finding the batch whose gradient is the one that was seen.

recipes/ has every attack by its name, with its settings and citation. Those that optimise are put together in
matching.py: victim.py rebuilds the model from an observation, statistics.py and normalisation.py hold the BatchNorm
modes, local_steps.py what the client did, objectives.py and priors.py what is minimised, labels the labels, starts.py
the first guess, awareness/ what knowing a defense changes, and maps.py what it does to the guess's gradient. step.py is
one step as a pure function, engines.py ways to run it, optimisers.py and lbfgs.py how the guess moves, loop.py the
loop. closed_form/ has those that solve equations.
"""
