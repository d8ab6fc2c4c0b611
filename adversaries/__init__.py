"""The adversaries: the threat model, the wiretap that enforces it, and the attacks."""
