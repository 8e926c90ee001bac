"""The training engine: torch, torchvision, NumPy and Pillow, and nothing else of the house but `pipelines.core`."""

import os

# Before torch is loaded: its threads otherwise spin while they wait for each other, and take the cores from whatever
# else wants them. Two threads on two cores that something else used too: 59 images/s spinning, 91 asleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
