"""Where attacks run: in a process of their own, which gets the bytes of its jobs and nothing else, or in this one."""
