//! Scheduling: per-CPU run queues and the policies over them.
