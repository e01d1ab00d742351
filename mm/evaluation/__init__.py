"""Models against data sets on disk: `coco` and `folder` read one, `run` walks through it, `report` says it all."""
