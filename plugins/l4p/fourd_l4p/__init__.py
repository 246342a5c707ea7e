"""L4P whole: the published checkpoint in the names of a recipe, and what teaches its heads."""
