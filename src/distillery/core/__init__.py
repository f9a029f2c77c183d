"""What every room uses: errors, whole files, counter-based random numbers, numerics. Imports nothing of ours."""
