"""Which mask belongs to which image: by their names (`names`), or as a list says (`lists`)."""
