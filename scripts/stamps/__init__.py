"""The stamps data set: `__main__` writes it, `compose` makes a clip, `material` gets what it is made of."""
