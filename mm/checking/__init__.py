"""`mm check`: a checkpoint as it is read here, beside its reference library and what was published of its family."""
