"""The knowledge about adapters and the ways to query it; uses no network and no terminal."""
