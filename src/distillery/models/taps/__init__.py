"""Recording the layers and the attention of networks."""
