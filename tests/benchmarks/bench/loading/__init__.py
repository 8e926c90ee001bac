"""Sections of bench_loading."""
