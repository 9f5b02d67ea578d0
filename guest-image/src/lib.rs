//! Guest images: recipes, Debian packages, initramfs, content-addressed cache.
