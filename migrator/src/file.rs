//! (device, inode) ↔ path, inside containers and mounts.
