//! Wait queues: how a thread sleeps until a condition holds.
