"""Where objects come from: the API server or files. Only this package knows the names of API fields."""
