"""The mask families: each module draws one kind of hole."""
