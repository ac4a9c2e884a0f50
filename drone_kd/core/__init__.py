"""Pure functions on arrays: no I/O, no clock, no globals."""
