//! Address spaces and memory objects.
