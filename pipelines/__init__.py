"""Jobs around the library, and the `seedvr2` command."""
