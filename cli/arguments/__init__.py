"""What a command line names: files and specs that are read, and examples of each command."""
