"""Further looks at a picture: sharper at one object, or in tiles of a large picture."""
