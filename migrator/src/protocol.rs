//! What source and destination say to each other.
