"""From bytes to upright pixels and back: reading, fetching, squares and frames. `mm.images` is the gate."""
