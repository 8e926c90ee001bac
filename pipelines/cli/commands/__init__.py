"""Commands of the `darkroom` program, one module a group. Each has `register(app)`; heavy imports stay in functions."""
