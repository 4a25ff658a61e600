"""The forty systems, by the field of their users; `catalogue` lists them."""
