"""Teachers: frozen, EMA and peer networks, ensembles, and the cache of their signals."""
