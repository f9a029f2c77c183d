"""Shared basics: errors, atomic files, counter-based random numbers, numerics. Imports no other room."""
