"""What processes share through Redis, and how each goes on by itself while there is none."""
