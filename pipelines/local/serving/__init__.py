"""Serving on one machine: bento processes and the gateway's files, brought to what the database asks for."""
