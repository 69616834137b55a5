"""Figures of a report: each module draws one kind; `pictures` says which there are, `files` writes them."""
