"""The training engine: torch, torchvision, NumPy and Pillow, and nothing else of the house but `pipelines.core`."""
