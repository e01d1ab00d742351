"""From a name to a model: names, hubs, folders of every published layout, strict reading, and folders of our own."""
