"""rice_jax: recognises the product shown in a livestream clip among the images of its shop."""
