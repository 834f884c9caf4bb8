//! System call dispatch.
