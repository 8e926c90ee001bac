"""How a network is fitted: `fit` from the first epoch to the last, `step` from a batch to new weights."""
