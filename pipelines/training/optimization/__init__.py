"""How gradients become weights: rates over time, optimizers, averaged weights."""
