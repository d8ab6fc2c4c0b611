"""Attacks that solve equations instead of minimising a distance. Each file is one paper's."""
