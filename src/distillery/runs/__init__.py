"""One run from a config to a finished folder, and many of them: stages, sweeps, studies, exports."""
