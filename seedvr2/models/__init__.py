"""The networks: generator, autoencoder and what they are made of."""
