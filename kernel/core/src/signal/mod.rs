//! Signals: state, sending, delivery.
