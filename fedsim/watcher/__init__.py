"""Looking on while a run or a sweep goes on: nothing is written, and only what is new is read."""
