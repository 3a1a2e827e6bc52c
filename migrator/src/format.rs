//! The bytes of a page index list.
