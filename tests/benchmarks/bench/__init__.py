"""What the benchmarks are made of: statistics, controls, our side, and a module for each section."""
