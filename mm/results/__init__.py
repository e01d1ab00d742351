"""The results and all that can be done with them: JSON, drawing, other tools' formats. `mm.types` holds the classes."""
