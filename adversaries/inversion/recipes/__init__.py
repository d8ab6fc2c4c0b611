"""Every attack by its name: its settings, what it needs, and whose it is. Nothing here imports torch before it runs."""
