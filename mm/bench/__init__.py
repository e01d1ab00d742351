"""What `mm bench` times, each part beside its peer on the same weights in one run."""
