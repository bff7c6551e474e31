"""Commands of the command line that have more than one part."""
