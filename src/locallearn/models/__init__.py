"""The model zoo: ordered lists of units with a head, which have no idea how they will be trained."""
