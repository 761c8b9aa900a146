"""What a typed phrase asks for: without words around it, typing errors mended, unknown words named."""
