"""Merges: worked cases, identities, dense references in float64, and PEFT's own functions."""
