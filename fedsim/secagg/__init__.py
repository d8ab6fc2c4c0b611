"""Secure aggregation: the server learns the sum of the clients' updates, and nothing of any single one.

Here are the settings of each mode (`ideal`, `secagg+`, `ckks`), the cryptography and its arithmetic. The client's half
of a mode is in `clients/`, the server's in `server/`; both are found by the mode's name.
"""
