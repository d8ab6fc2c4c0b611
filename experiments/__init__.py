"""The experiments that ship with fedsim: `fedsim run NAME`."""
