"""The networks: an image branch, a record branch, a fusion block and a head."""
