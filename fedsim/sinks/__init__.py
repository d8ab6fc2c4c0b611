"""Where rounds and scores go besides a run's folder: logs of other programs, each an optional package."""
