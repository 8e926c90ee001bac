"""Serving beside its controls and peers: what a request costs, how long it takes, what a process holds."""
