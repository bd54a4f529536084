"""`--ray`: a corpus observed by many models at once, on Ray Data."""
