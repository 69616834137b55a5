"""Where cells run: executors by name, the project's own and those of installed packages."""
