"""How close a restored frame is to its original."""
