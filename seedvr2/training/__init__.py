"""How the networks are trained; knows nothing of files or clusters."""
