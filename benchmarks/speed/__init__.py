"""How fast reghead is, beside its peers and a stated practical limit: one module a subject."""
