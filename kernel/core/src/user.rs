//! Typed user memory.
