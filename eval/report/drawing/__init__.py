"""Charts and sheets of pictures in one style, for light and dark pages: data in, matplotlib figures out."""
