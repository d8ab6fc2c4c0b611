"""Sweeps: an experiment over a grid of values, run in parallel, gone on with after a break, and put into one table.

`file` reads a sweep, `cells` makes the grid of experiments, `runner` runs them in the processes of `pool`, `collect`
puts together what came out, `estimate` says what it would cost. Only the estimate imports torch.
"""
