"""Training of the models that come with the project."""
