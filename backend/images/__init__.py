"""Images: fetched safely, verified, stored by digest."""
