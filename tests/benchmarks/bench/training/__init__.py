"""Sections of bench_training."""
