"""Models against the drawn world (`scenes`) and data on disk: `coco` and `folder` read it, `run` walks through it."""
