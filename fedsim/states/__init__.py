"""What a run has to remember so that it can go on when it was broken off: how it becomes bytes, and where they are."""
