"""Models against data sets on disk: `detect`, `segment` and `matte` read one, `run` goes through it, `report` says it."""
