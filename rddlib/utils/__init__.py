"""What serves all: errors, files, processes, progress, the installation."""
