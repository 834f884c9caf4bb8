//! The vDSO's data page.

/// Brings the page up to date after the wall clock was set.
pub(super) fn update() {}
